// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package doctor finds out what is wrong with builders and says it, step by step: by
// asking the operator in a cluster, or by probing machines from here.
package doctor

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// Finding is the short form of what was found.
type Finding string

// The findings.
const (
	// Well: nothing is wrong.
	Well Finding = "Well"
	// Wrong: some step does not hold.
	Wrong Finding = "Wrong"
	// Unclear: it could not be found out.
	Unclear Finding = "Unclear"
)

// Report is all that was found. Its JSON is documented in docs/kubectl.md.
type Report struct {
	Builders []Builder `json:"builders"`
}

// Builder is a NixBuilder, or, without a cluster, all machines of the command line.
type Builder struct {
	Namespace string  `json:"namespace,omitempty"`
	Name      string  `json:"name,omitempty"`
	Finding   Finding `json:"finding"`
	// Doubts counts those of the machines.
	Doubts int `json:"doubts,omitempty"`
	// Problem is why nothing could be found out.
	Problem string `json:"problem,omitempty"`
	// Steps are those about the whole object.
	Steps    []Step    `json:"steps,omitempty"`
	Machines []Machine `json:"machines,omitempty"`
}

// Machine is an endpoint, or, without a cluster, a line of a machines file.
type Machine struct {
	Name    string  `json:"name"`
	Address string  `json:"address,omitempty"`
	Finding Finding `json:"finding"`
	// Doubts counts the steps that are Unknown and name something to correct.
	Doubts  int    `json:"doubts,omitempty"`
	Problem string `json:"problem,omitempty"`
	Steps   []Step `json:"steps,omitempty"`
	// Cordon is set where somebody has taken the machine out of use.
	Cordon *Cordon `json:"cordon,omitempty"`
	// File is what the machines file makes of it; nil without a cluster.
	File *File `json:"machinesFile,omitempty"`
}

// Step is what was found in one step.
type Step struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Milliseconds is how long it took.
	Milliseconds int64 `json:"durationMilliseconds"`
}

// Cordon is one that holds.
type Cordon struct {
	Reason string     `json:"reason"`
	Until  *time.Time `json:"until,omitempty"`
}

// File says whether a machine has a line in the machines file of its namespace.
type File struct {
	Listed  bool     `json:"listed"`
	Systems []string `json:"systems,omitempty"`
	// Why says why not, or not for all systems.
	Why string `json:"why,omitempty"`
}

// Finding is Wrong where anything is, else Unclear where anything is, else Well.
func (r *Report) Finding() Finding {
	all := Well
	for i := range r.Builders {
		all = worse(all, r.Builders[i].Finding)
	}
	return all
}

// worse prefers what is known to be wrong to what is not known.
func worse(a, b Finding) Finding {
	for _, finding := range []Finding{Wrong, Unclear} {
		if a == finding || b == finding {
			return finding
		}
	}
	return Well
}

// ofSteps is Wrong where a step does not hold. What could not be verified takes
// nothing out of use and is not held against anybody.
func ofSteps(steps []Step) Finding {
	for _, step := range steps {
		if step.Status == string(metav1.ConditionFalse) {
			return Wrong
		}
	}
	return Well
}

// doubts counts the steps by which something may have to be corrected, though the
// machine is in use.
func doubts(steps []Step) int {
	count := 0
	for _, step := range steps {
		if step.Status == string(metav1.ConditionUnknown) && probe.Reason(step.Reason).NotConfirmed() {
			count++
		}
	}
	return count
}

// settle works out the findings of a builder from those of its parts.
func (b *Builder) settle() {
	b.Finding, b.Doubts = ofSteps(b.Steps), 0
	if b.Problem != "" {
		b.Finding = worse(b.Finding, Unclear)
	}
	for i := range b.Machines {
		m := &b.Machines[i]
		m.Finding, m.Doubts = ofSteps(m.Steps), doubts(m.Steps)
		if m.Problem != "" {
			m.Finding = worse(m.Finding, Unclear)
		}
		b.Finding, b.Doubts = worse(b.Finding, m.Finding), b.Doubts+m.Doubts
	}
}

// FromStatus reports what status.lastProbe of a NixBuilder says. verdicts are those
// about the machines of its namespace.
func FromStatus(builder *v1alpha1.NixBuilder, verdicts []machines.Verdict, now time.Time) Builder {
	b := Builder{Namespace: builder.Namespace, Name: builder.Name}
	var last v1alpha1.LastProbe
	if builder.Status.LastProbe != nil {
		last = *builder.Status.LastProbe
	}
	b.Steps = steps(last.Steps)
	probed := make(map[string][]Step)
	for _, endpoint := range last.Endpoints {
		probed[endpoint.Name] = steps(endpoint.Steps)
	}
	for i := range builder.Spec.Endpoints {
		endpoint := &builder.Spec.Endpoints[i]
		m := Machine{Name: endpoint.Name, Address: endpoint.Address(), Steps: probed[endpoint.Name]}
		if cordon := builder.Spec.ActiveCordon(endpoint, now); cordon != nil {
			m.Cordon = &Cordon{Reason: cordon.Reason}
			if cordon.Until != nil {
				m.Cordon.Until = &cordon.Until.Time
			}
		}
		switch {
		case len(m.Steps) > 0:
		case ofSteps(b.Steps) == Wrong:
			m.Problem = "not probed, because of what is wrong above"
		default:
			m.Problem = "not probed: it was added meanwhile"
		}
		for _, v := range verdicts {
			if v.Builder == builder.Name && v.Endpoint == endpoint.Name {
				m.File = &File{Listed: v.Line != "", Systems: v.Systems, Why: v.Why}
			}
		}
		b.Machines = append(b.Machines, m)
	}
	b.settle()
	b.summarise(builder)
	return b
}

// summarise adds the summary of the operator where it says what no step does: that the
// machines can be used, say, but do not tell for which systems. A cordon is somebody's
// wish.
func (b *Builder) summarise(builder *v1alpha1.NixBuilder) {
	ready := builder.Status.Condition(v1alpha1.ConditionReady)
	if b.Finding != Well || ready == nil || ready.Status != metav1.ConditionFalse || ready.Reason == v1alpha1.ReasonCordoned {
		return
	}
	b.Steps = append(b.Steps, Step{Type: ready.Type, Status: string(ready.Status), Reason: ready.Reason, Message: ready.Message})
	b.settle()
}

func steps(probed []v1alpha1.ProbedStep) []Step {
	var list []Step
	for _, step := range probed {
		list = append(list, Step{
			Type: step.Type, Status: string(step.Status), Reason: step.Reason, Message: step.Message,
			Milliseconds: step.DurationMilliseconds,
		})
	}
	return list
}
