// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package roster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// Outcome is what becomes of a build.
type Outcome string

// The outcomes.
const (
	// Builds: some machine can do it now.
	Builds Outcome = "Builds"
	// Waits: some machine could, but none of those can be used now.
	Waits Outcome = "Waits"
	// Nowhere: no machine does such builds.
	Nowhere Outcome = "Nowhere"
)

// Obstacles: why a machine does not do a build. The first three pass by themselves,
// or when somebody mends something.
const (
	Cordoned         = "Cordoned"
	OutOfUse         = "OutOfUse"
	NotProbed        = "NotProbed"
	NotAccepted      = "NotAccepted"
	SystemMissing    = "SystemMissing"
	SystemRefuted    = "SystemRefuted"
	FeatureMissing   = "FeatureMissing"
	FeatureRefuted   = "FeatureRefuted"
	FeatureMandatory = "MandatoryFeatureNotRequired"
)

// Answer says where a build would go. Its JSON is documented in docs/kubectl.md.
type Answer struct {
	Namespace string   `json:"namespace"`
	System    string   `json:"system"`
	Features  []string `json:"features,omitempty"`
	Outcome   Outcome  `json:"outcome"`
	// Choices are the machines that can do the build now, the one that an idle
	// dispatcher prefers first.
	Choices []Choice `json:"choices"`
	// Others are those that cannot, each with all that is in the way.
	Others []Other `json:"others"`
}

// Choice is a machine that can do the build.
type Choice struct {
	Machine     string `json:"machine"`
	Jobs        int    `json:"maxJobs"`
	SpeedFactor int    `json:"speedFactor"`
	// Doubt is what may have to be corrected although the machine is in use.
	Doubt string `json:"doubt,omitempty"`
}

// Other is a machine that cannot.
type Other struct {
	Machine   string     `json:"machine"`
	Obstacles []Obstacle `json:"obstacles"`
}

// Obstacle is one reason.
type Obstacle struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// Why answers for a build for a system that requires features, by the rules of the
// dispatcher. builders are those of one namespace.
func Why(builders []v1alpha1.NixBuilder, namespace, system string, features []string, now time.Time) *Answer {
	need := scheduler.Need(system, features)
	answer := &Answer{Namespace: namespace, System: system, Features: need.Mandatory, Outcome: Nowhere, Choices: []Choice{}, Others: []Other{}}
	known := New(builders, now)
	document := machines.Inventory(builders, now)
	var able []scheduler.Builder
	for i := range known.Machines {
		m := &known.Machines[i]
		at := slices.IndexFunc(document.Builders, func(e inventory.Endpoint) bool { return e.ID() == m.ID() })
		if at < 0 {
			answer.Others = append(answer.Others, Other{m.ID(), []Obstacle{{NotAccepted, notAccepted(m)}}})
			continue
		}
		b := schedulable(&document.Builders[at])
		serves := b.Serves(need)
		if serves && b.Usable(now) {
			able = append(able, b)
			continue
		}
		if serves {
			answer.Outcome = Waits
		}
		answer.Others = append(answer.Others, Other{m.ID(), obstacles(m, &b, need)})
	}
	answer.rank(able, need, now)
	for i := range answer.Choices {
		at := slices.IndexFunc(known.Machines, func(m Machine) bool { return m.ID() == answer.Choices[i].Machine })
		answer.Choices[i].Doubt = known.Machines[at].Doubt
	}
	return answer
}

// schedulable is an endpoint as the scheduler sees it.
func schedulable(e *inventory.Endpoint) scheduler.Builder {
	b := scheduler.Builder{
		ID: e.ID(), Systems: e.Systems, Supported: e.SupportedFeatures, Mandatory: e.MandatoryFeatures,
		Slots: e.Slots, Speed: e.SpeedFactor,
	}
	if e.State != inventory.StateHealthy && e.State != inventory.StateSuspect {
		b.Down, b.Since = "out of use", e.Since
	}
	if e.Cordon != nil {
		b.Cordon = &scheduler.Cordon{Reason: e.Cordon.Reason}
		if e.Cordon.Until != nil {
			b.Cordon.Until = *e.Cordon.Until
		}
	}
	return b
}

// rank orders the machines that can do the build: each time the scheduler's choice
// among those that are left.
func (a *Answer) rank(able []scheduler.Builder, need scheduler.Class, now time.Time) {
	for len(able) > 0 {
		i, ok := scheduler.Place(scheduler.Snapshot{Builders: able, Now: now}, scheduler.Request{Class: need})
		if !ok {
			return
		}
		a.Outcome = Builds
		a.Choices = append(a.Choices, Choice{Machine: able[i].ID, Jobs: able[i].Slots, SpeedFactor: max(able[i].Speed, 1)})
		able = slices.Delete(able, i, i+1)
	}
}

func notAccepted(m *Machine) string {
	if m.Message == "" {
		return "no operator has looked at its NixBuilder yet"
	}
	return fmt.Sprintf("its NixBuilder is not accepted or is being deleted (%s): %s", m.Reason, m.Message)
}

// obstacles lists all that keeps a machine from doing a build.
func obstacles(m *Machine, b *scheduler.Builder, need scheduler.Class) []Obstacle {
	var list []Obstacle
	add := func(kind, format string, args ...any) {
		list = append(list, Obstacle{kind, fmt.Sprintf(format, args...)})
	}
	lacking := slices.DeleteFunc(slices.Clone(m.Mandatory), func(feature string) bool { return !slices.Contains(m.RefutedFeatures, feature) })
	switch {
	case slices.Contains(b.Systems, need.System):
	case len(lacking) > 0: // dispatchers are told of no system then
		add(FeatureRefuted, "its daemon says that it lacks %s, without which it takes no build: %s", strings.Join(lacking, ", "), m.Message)
	case slices.Contains(m.RefutedSystems, need.System):
		add(SystemRefuted, "it turned out not to build for %s: %s", need.System, m.Message)
	case len(b.Systems) == 0:
		add(SystemMissing, "its systems are not known yet")
	default:
		add(SystemMissing, "it does not build for %s, only for %s", need.System, strings.Join(b.Systems, ", "))
	}
	for _, feature := range need.Mandatory {
		switch {
		case slices.Contains(b.Supported, feature), slices.Contains(b.Mandatory, feature):
		case slices.Contains(m.RefutedFeatures, feature):
			add(FeatureRefuted, "its daemon says that it lacks feature %s", feature)
		default:
			add(FeatureMissing, "it does not offer feature %s", feature)
		}
	}
	for _, feature := range b.Mandatory {
		if !slices.Contains(need.Mandatory, feature) {
			add(FeatureMandatory, "it takes only builds that require feature %s", feature)
		}
	}
	if m.Cordon != nil {
		add(Cordoned, "it is cordoned: %s", m.Cordon.text())
	}
	switch {
	case b.Down == "":
	case m.State == string(v1alpha1.EndpointUnknown):
		add(NotProbed, "it has not been probed yet")
	default:
		add(OutOfUse, "it is out of use (%s): %s", m.Reason, m.Message)
	}
	return list
}

// Print writes the answer for people.
func (a *Answer) Print(p *show.Printer) {
	build := "A build for " + scheduler.Need(a.System, a.Features).String()
	switch a.Outcome {
	case Builds:
		p.Paragraph(0, show.Good, build+" goes to "+a.Choices[0].Machine+".")
		if len(a.Choices) > 1 {
			p.Paragraph(0, show.Plain, "In order of preference while nothing else builds; busy machines, and those that lack the build's inputs, come later:")
		}
		a.printChoices(p)
	case Waits:
		p.Paragraph(0, show.Bad, build+" waits: the machines for it cannot be used now.")
	case Nowhere:
		p.Paragraph(0, show.Bad, build+" goes nowhere: no machine in namespace "+a.Namespace+" does such builds. Nix builds it where it runs, or fails.")
	}
	if len(a.Others) > 0 {
		p.Linef("")
		p.Linef("Not to:")
	}
	for _, other := range a.Others {
		p.Linef("  %s", p.Styled(show.Strong, other.Machine))
		for _, obstacle := range other.Obstacles {
			p.Paragraph(4, show.Plain, obstacle.Message)
		}
	}
}

// printChoices writes a table, with a column for doubts where there are any.
func (a *Answer) printChoices(p *show.Printer) {
	header := []string{"NAME", "JOBS", "SPEED"}
	doubted := slices.ContainsFunc(a.Choices, func(c Choice) bool { return c.Doubt != "" })
	if doubted {
		header = append(header, "DOUBT")
	}
	var rows [][]show.Cell
	for _, c := range a.Choices {
		row := []show.Cell{{Text: c.Machine}, {Text: fmt.Sprint(c.Jobs)}, {Text: fmt.Sprint(c.SpeedFactor)}}
		if doubted {
			row = append(row, show.Cell{Text: c.Doubt, Style: show.Doubt})
		}
		rows = append(rows, row)
	}
	p.Table(header, rows)
}
