// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"fmt"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// cordon returns the cordon that an endpoint is under now, or nil.
func (s *scope) cordon(endpoint *v1alpha1.Endpoint) *v1alpha1.Cordon {
	return s.builder.Spec.ActiveCordon(endpoint, s.now)
}

// wakeAtCordonEnd asks for a pass when the next cordon ends.
func (s *scope) wakeAtCordonEnd() {
	cordons := []*v1alpha1.Cordon{s.builder.Spec.Cordon}
	for i := range s.builder.Spec.Endpoints {
		cordons = append(cordons, s.builder.Spec.Endpoints[i].Cordon)
	}
	for _, cordon := range cordons {
		if cordon.ActiveAt(s.now) && cordon.Until != nil {
			s.wakeIn(cordon.Until.Sub(s.now))
		}
	}
}

// cordonGroup is a cordon with the endpoints under it.
type cordonGroup struct {
	cordon *v1alpha1.Cordon
	names  []string
	all    bool // no endpoint is left out
}

// cordonGroups lists the cordons that endpoints are under, in the order of these.
// Only those of the endpoints are looked at for which take says so.
func cordonGroups(endpoints []v1alpha1.EndpointStatus, take func(*v1alpha1.EndpointStatus) bool) []cordonGroup {
	var groups []cordonGroup
next:
	for i := range endpoints {
		endpoint := &endpoints[i]
		if endpoint.Cordon == nil || !take(endpoint) {
			continue
		}
		for g := range groups {
			if sameCordon(groups[g].cordon, endpoint.Cordon) {
				groups[g].names = append(groups[g].names, endpoint.Name)
				continue next
			}
		}
		groups = append(groups, cordonGroup{cordon: endpoint.Cordon, names: []string{endpoint.Name}})
	}
	for g := range groups {
		groups[g].all = len(groups[g].names) == len(endpoints)
	}
	return groups
}

func every(*v1alpha1.EndpointStatus) bool { return true }

func sameCordon(a, b *v1alpha1.Cordon) bool {
	return a == b || a != nil && b != nil && a.Reason == b.Reason && a.Until.Equal(b.Until)
}

// who names the endpoints of a group.
func (g cordonGroup) who() string {
	if g.all {
		return "every endpoint"
	}
	return strings.Join(g.names, ", ")
}

// why is the reason of the group's cordon, with its end.
func (g cordonGroup) why() string {
	if g.cordon.Until == nil {
		return g.cordon.Reason
	}
	return fmt.Sprintf("%s (until %s)", g.cordon.Reason, g.cordon.Until.UTC().Format(time.RFC3339))
}

// cordoned tells which endpoints are cordoned, why and until when, if any is.
func cordoned(endpoints []v1alpha1.EndpointStatus) (verdict, bool) {
	var texts []string
	for _, group := range cordonGroups(endpoints, every) {
		texts = append(texts, group.who()+": "+group.why())
	}
	return holds(v1alpha1.ReasonCordoned, strings.Join(texts, "; ")), len(texts) > 0
}

// allCordoned says why none of the endpoints takes builds, where all are cordoned.
func allCordoned(endpoints []v1alpha1.EndpointStatus) string {
	groups := cordonGroups(endpoints, every)
	if len(groups) == 1 {
		return "every endpoint is cordoned: " + groups[0].why()
	}
	return "every endpoint is cordoned"
}

// cordonTransitions tells that machines were taken out of use or back into it, and of
// other reasons and ends of cordons that go on.
func cordonTransitions(before, after *v1alpha1.NixBuilderStatus) []transition {
	var told []transition
	for _, group := range cordonGroups(after.Endpoints, func(now *v1alpha1.EndpointStatus) bool {
		old := before.Endpoint(now.Name)
		return old == nil || !sameCordon(old.Cordon, now.Cordon)
	}) {
		told = append(told, transition{reason: v1alpha1.ReasonCordoned, action: actionCordon, note: fmt.Sprintf(
			"%s: %s; no new builds, running ones finish", group.who(), group.why())})
	}
	for _, group := range cordonGroups(before.Endpoints, func(old *v1alpha1.EndpointStatus) bool {
		now := after.Endpoint(old.Name)
		return now != nil && now.Cordon == nil
	}) {
		told = append(told, transition{reason: reasonUncordoned, action: actionCordon, note: fmt.Sprintf(
			"%s: takes builds again, since the cordon is over: %s", group.who(), group.why())})
	}
	return told
}

// expiredCordons tells of cordons in a spec that is new that are over already: who
// wrote one expects it to have an effect. Merging a reason into a cordon that has
// ended keeps its end.
func (s *scope) expiredCordons() []transition {
	spec := &s.builder.Spec
	if s.builder.Generation == s.builder.Status.ObservedGeneration {
		return nil
	}
	var fields []string
	var first *v1alpha1.Cordon
	look := func(field string, cordon *v1alpha1.Cordon) {
		if cordon == nil || cordon.ActiveAt(s.now) {
			return
		}
		fields = append(fields, field)
		if first == nil {
			first = cordon
		}
	}
	look("spec.cordon", spec.Cordon)
	for i := range spec.Endpoints {
		look("cordon of endpoint "+spec.Endpoints[i].Name, spec.Endpoints[i].Cordon)
	}
	if first == nil {
		return nil
	}
	return []transition{{warning: true, reason: reasonCordonExpired, action: actionCordon, note: fmt.Sprintf(
		"%s: over already (until %s), so it takes nothing out of use; give it another until, or none with until: null",
		strings.Join(fields, ", "), first.Until.UTC().Format(time.RFC3339))}}
}
