// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
)

// Verdict says what the machines file makes of one machine, for people.
type Verdict struct {
	// Builder is the name of the NixBuilder, Endpoint that of the machine in it.
	Builder, Endpoint string
	// Line is the machine's line without its newline, "" where it has none.
	Line string
	// Systems are those of the line, Missing those of the machine for which it
	// is not listed.
	Systems, Missing []string
	// Why says why it has no line, or none for the missing systems, or has one
	// although it is out of use. It is empty where there is nothing to explain.
	Why string
}

// Verdicts explains, by the rules of [Desired], the machines file of one namespace:
// one verdict for each machine of its NixBuilders, sorted by builder and name.
func Verdicts(builders []v1alpha1.NixBuilder, now time.Time) []Verdict {
	all := endpoints(builders, now)
	list := listed(all)
	verdicts := rejected(builders)
	for i := range all {
		at := slices.IndexFunc(list, func(l listing) bool { return l.endpoint == &all[i] })
		var systems []string
		if at >= 0 {
			systems = list[at].systems
		}
		verdicts = append(verdicts, all[i].verdict(systems))
	}
	slices.SortFunc(verdicts, func(a, b Verdict) int {
		return cmp.Or(cmp.Compare(a.Builder, b.Builder), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return verdicts
}

// Inventory lists every machine of the accepted NixBuilders of one namespace, in use
// or not, as dispatchers are told of it.
func Inventory(builders []v1alpha1.NixBuilder, now time.Time) inventory.Document {
	return document(endpoints(builders, now))
}

// rejected is about the machines of NixBuilders that are not published at all.
func rejected(builders []v1alpha1.NixBuilder) []Verdict {
	var verdicts []Verdict
	for i := range builders {
		builder := &builders[i]
		if accepted(builder) {
			continue
		}
		why := "no operator has looked at its NixBuilder yet"
		condition := builder.Status.Condition(v1alpha1.ConditionAccepted)
		switch {
		case !builder.DeletionTimestamp.IsZero():
			why = "its NixBuilder is being deleted"
		case condition != nil && condition.Status == metav1.ConditionFalse:
			why = fmt.Sprintf("its NixBuilder is not accepted (%s): %s", condition.Reason, condition.Message)
		}
		for j := range builder.Spec.Endpoints {
			verdicts = append(verdicts, Verdict{Builder: builder.Name, Endpoint: builder.Spec.Endpoints[j].Name, Why: why})
		}
	}
	return verdicts
}

// verdict explains an endpoint that is listed for these systems.
func (e *endpoint) verdict(systems []string) Verdict {
	v := Verdict{Builder: e.builder, Endpoint: e.name}
	for _, system := range e.systems {
		if !slices.Contains(systems, system) {
			v.Missing = append(v.Missing, system)
		}
	}
	if obstacle := e.obstacle(); obstacle != "" {
		v.Why = obstacle
		return v
	}
	if len(systems) > 0 {
		r := newRoute(e)
		if r.problem != nil {
			v.Why, v.Missing = "no line can be written for it: "+r.problem.Error(), e.systems
			return v
		}
		r.machine.Systems = systems
		if line, err := machines.Format([]machines.Machine{r.machine}); err == nil {
			v.Line, v.Systems = strings.TrimSuffix(string(line), "\n"), systems
		}
	}
	v.Why = e.outOfUse(systems, v.Missing)
	return v
}

// outOfUse explains why an endpoint that is not in use has a line for these systems, or has
// none.
func (e *endpoint) outOfUse(listed, missing []string) string {
	if e.inUse() {
		return ""
	}
	state := e.idle()
	switch {
	case len(listed) == 0:
		return state + ", and others do its builds or were healthy after it"
	case len(missing) > 0:
		return state + ", but nobody else builds for " + strings.Join(listed, ", ") + "; others do for " + strings.Join(missing, ", ")
	default:
		return state + ", but listed, since nobody else does its builds"
	}
}

// idle says in what way an endpoint is not in use.
func (e *endpoint) idle() string {
	if e.state.State == v1alpha1.EndpointUnhealthy {
		return "out of use (" + e.state.Reason + ")"
	}
	return "not probed yet"
}
