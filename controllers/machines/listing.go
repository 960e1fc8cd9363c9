// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"slices"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// lastHealthyWindow is how long before the machine that was healthy last
// another one may have been, to count as healthy last too. Machines that fail
// together are found out one after the other, by probes with intervals,
// thresholds and time-outs of their own.
const lastHealthyWindow = 10 * time.Minute

// listing is what the machines file says of an endpoint: that it builds for
// these systems, which may be some of its own.
type listing struct {
	*endpoint
	systems []string
}

// listed selects what a machines file has lines for. A class of builds is a
// system, supported and mandatory features. For each class that some endpoint
// stands for, these are the endpoints in use; where none of those can do the
// builds of the class, those stay that were in use last, so that builds of the
// class have a machine to wait for or to fail on by name.
func listed(all []endpoint) []listing {
	var candidates []*endpoint
	for i := range all {
		if all[i].listable() {
			candidates = append(candidates, &all[i])
		}
	}
	classes := make(map[string]*classState)
	var list []listing
	for _, e := range candidates {
		systems := slices.DeleteFunc(slices.Clone(e.systems), func(system string) bool {
			if e.inUse() {
				return false
			}
			class := scheduler.NewClass(system, e.features, e.mandatory)
			state := classes[class.Key()]
			if state == nil {
				state = newClassState(class, candidates)
				classes[class.Key()] = state
			}
			return !state.keeps(e)
		})
		if len(systems) > 0 {
			list = append(list, listing{endpoint: e, systems: systems})
		}
	}
	return list
}

// classState is what all candidates together mean for a class.
type classState struct {
	served bool      // by an endpoint in use
	last   time.Time // when an endpoint that serves it was in use last
}

func newClassState(class scheduler.Class, candidates []*endpoint) *classState {
	state := &classState{}
	for _, e := range candidates {
		able := scheduler.Builder{Systems: e.systems, Supported: e.features, Mandatory: e.mandatory}
		if !able.Serves(class) {
			continue
		}
		state.served = state.served || e.inUse()
		if at := e.state.LastHealthyTime; at != nil && at.After(state.last) {
			state.last = at.Time
		}
	}
	return state
}

// keeps reports whether an endpoint that is not in use stays listed.
func (s *classState) keeps(e *endpoint) bool {
	at := e.state.LastHealthyTime
	return !s.served && at != nil && s.last.Sub(at.Time) <= lastHealthyWindow
}
