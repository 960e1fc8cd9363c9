// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package roster lists the machines of NixBuilders, and explains what the machines file
// and the dispatcher make of them.
package roster

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// Roster is a list of machines. Its JSON is documented in docs/kubectl.md.
type Roster struct {
	Machines []Machine `json:"machines"`
}

// Machine is one endpoint of a NixBuilder.
type Machine struct {
	Namespace string     `json:"namespace"`
	Builder   string     `json:"builder"`
	Name      string     `json:"name"`
	Address   string     `json:"address"`
	State     string     `json:"state"`
	Since     *time.Time `json:"since,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	Message   string     `json:"message,omitempty"`
	// Doubt is what may have to be corrected although the machine is in use.
	Doubt    string   `json:"doubt,omitempty"`
	Systems  []string `json:"systems,omitempty"`
	Features []string `json:"features,omitempty"`
	// Mandatory are features that a build has to require to come here.
	Mandatory       []string `json:"mandatoryFeatures,omitempty"`
	RefutedSystems  []string `json:"refutedSystems,omitempty"`
	RefutedFeatures []string `json:"refutedFeatures,omitempty"`
	Jobs            int32    `json:"maxJobs"`
	Cores           int32    `json:"cores,omitempty"`
	Nix             string   `json:"nixVersion,omitempty"`
	// Credential is the Secret whose key the machine accepted.
	Credential string  `json:"credential,omitempty"`
	Cordon     *Cordon `json:"cordon,omitempty"`
}

// Cordon is one that holds.
type Cordon struct {
	Reason string     `json:"reason"`
	Until  *time.Time `json:"until,omitempty"`
}

// ID is how the commands name the machine: "linux/linux-1".
func (m *Machine) ID() string { return m.Builder + "/" + m.Name }

// New lists the machines of NixBuilders, sorted.
func New(builders []v1alpha1.NixBuilder, now time.Time) *Roster {
	r := &Roster{Machines: []Machine{}}
	for i := range builders {
		for j := range builders[i].Spec.Endpoints {
			r.Machines = append(r.Machines, newMachine(&builders[i], &builders[i].Spec.Endpoints[j], now))
		}
	}
	slices.SortFunc(r.Machines, func(a, b Machine) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Builder, b.Builder), cmp.Compare(a.Name, b.Name))
	})
	return r
}

func newMachine(builder *v1alpha1.NixBuilder, endpoint *v1alpha1.Endpoint, now time.Time) Machine {
	spec := &builder.Spec
	m := Machine{
		Namespace: builder.Namespace, Builder: builder.Name, Name: endpoint.Name, Address: endpoint.Address(),
		State: string(v1alpha1.EndpointUnknown), Mandatory: spec.MandatoryFeatures,
		Systems: spec.Systems, Features: spec.SupportedFeatures, Jobs: cmp.Or(endpoint.MaxJobs, spec.MaxJobs),
	}
	// What is known of another address is not about this machine.
	if s := builder.Status.Endpoint(endpoint.Name); s != nil && s.Address == m.Address {
		m.State, m.Reason, m.Message = string(s.State), s.Reason, s.Message
		m.Doubt = doubt(builder, s)
		m.Systems, m.RefutedSystems = cmpSlices(s.Systems, without(m.Systems, s.RefutedSystems)), s.RefutedSystems
		m.Features, m.RefutedFeatures = cmpSlices(s.Features, without(m.Features, s.RefutedFeatures)), s.RefutedFeatures
		m.Jobs, m.Cores, m.Nix, m.Credential = cmp.Or(s.MaxJobs, m.Jobs), s.Cores, s.NixVersion, s.Credential
		if s.LastTransitionTime != nil {
			m.Since = &s.LastTransitionTime.Time
		}
	}
	if condition := builder.Status.Condition(v1alpha1.ConditionAccepted); condition != nil && condition.Status == metav1.ConditionFalse {
		m.Reason, m.Message = condition.Reason, condition.Message
	}
	if cordon := spec.ActiveCordon(endpoint, now); cordon != nil {
		m.Cordon = &Cordon{Reason: cordon.Reason}
		if cordon.Until != nil {
			m.Cordon.Until = &cordon.Until.Time
		}
	}
	return m
}

// doubt is what is said of an endpoint by which something may have to be corrected. Where
// the endpoint's own status tells of something else, the condition of the step may name it.
func doubt(builder *v1alpha1.NixBuilder, s *v1alpha1.EndpointStatus) string {
	if s.State == v1alpha1.EndpointHealthy && probe.Reason(s.Reason).NotConfirmed() {
		return s.Message
	}
	verified := builder.Status.Condition(v1alpha1.ConditionSystemsVerified)
	if verified != nil && probe.Reason(verified.Reason).NotConfirmed() && strings.HasPrefix(verified.Message, s.Name+" (") {
		return verified.Message
	}
	return ""
}

// cmpSlices is the first list that is not empty.
func cmpSlices(a, b []string) []string {
	if len(a) > 0 {
		return a
	}
	return b
}

func without(list, out []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(out, s) })
}

// Print writes a table. namespaces adds a column for them.
func (r *Roster) Print(p *show.Printer, namespaces bool, now time.Time) {
	header := []string{"NAME", "ADDRESS", "STATE", "SINCE", "REASON", "SYSTEMS", "FEATURES", "JOBS", "NIX", "KEY", "CORDON"}
	if namespaces {
		header = append([]string{"NAMESPACE"}, header...)
	}
	var rows [][]show.Cell
	for i := range r.Machines {
		m := &r.Machines[i]
		row := []show.Cell{
			{Text: m.ID()}, {Text: m.Address}, {Text: m.State, Style: styleOf(m.State)}, {Text: age(m.Since, now)}, {Text: m.Reason},
			{Text: strings.Join(m.Systems, ",")}, {Text: features(m)}, {Text: number(m.Jobs)}, {Text: m.Nix}, {Text: m.Credential},
			{Text: m.Cordon.text(), Style: show.Doubt},
		}
		if namespaces {
			row = append([]show.Cell{{Text: m.Namespace}}, row...)
		}
		rows = append(rows, row)
	}
	p.Table(header, rows)
}

// features lists them all, with "!" behind those that a build has to require.
func features(m *Machine) string {
	list := without(m.Features, m.Mandatory)
	for _, feature := range m.Mandatory {
		list = append(list, feature+"!")
	}
	return strings.Join(list, ",")
}

func number(n int32) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(int(n))
}

func age(t *time.Time, now time.Time) string {
	if t == nil {
		return ""
	}
	return duration.HumanDuration(now.Sub(*t))
}

func (c *Cordon) text() string {
	switch {
	case c == nil:
		return ""
	case c.Until != nil:
		return c.Reason + " (until " + c.Until.Local().Format("2006-01-02 15:04") + ")"
	}
	return c.Reason
}

func styleOf(state string) show.Style {
	return map[string]show.Style{
		string(v1alpha1.EndpointHealthy): show.Good, string(v1alpha1.EndpointSuspect): show.Doubt, string(v1alpha1.EndpointUnhealthy): show.Bad,
	}[state]
}

// Unserved lists the systems of a NixBuilder, or of one endpoint of it, for which no
// machine of its namespace is in use.
func (r *Roster) Unserved(namespace, builder, endpoint string) []string {
	var systems []string
	for i := range r.Machines {
		m := &r.Machines[i]
		if m.Namespace == namespace && m.Builder == builder && (endpoint == "" || m.Name == endpoint) {
			systems = append(systems, m.Systems...)
		}
	}
	slices.Sort(systems)
	return slices.DeleteFunc(slices.Compact(systems), func(system string) bool {
		return slices.ContainsFunc(r.Machines, func(m Machine) bool {
			inUse := m.State == string(v1alpha1.EndpointHealthy) || m.State == string(v1alpha1.EndpointSuspect)
			return m.Namespace == namespace && inUse && m.Cordon == nil && slices.Contains(m.Systems, system)
		})
	})
}
