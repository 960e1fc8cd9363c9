// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Problems that keep a ConfigMap from being written, as values of the label
// problem.
const (
	problemConflict = "conflict"
	problemTooLarge = "too_large"
)

// Metrics are the controller's own. Labels are bounded by the number of
// namespaces with NixBuilders.
type Metrics struct {
	size     *prometheus.GaugeVec
	lines    *prometheus.GaugeVec
	problems *prometheus.GaugeVec
	writes   *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(registerer prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		size: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixbuilders_configmap_size_bytes",
			Help: "Size of the content of ConfigMap nix-machines, which must stay below 921600.",
		}, []string{"namespace"}),
		lines: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixbuilders_configmap_lines",
			Help: "Machines in the machines file of ConfigMap nix-machines.",
		}, []string{"namespace"}),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixbuilders_configmap_problem",
			Help: "1 while ConfigMap nix-machines cannot be written: problem is conflict (it is not ours) or too_large.",
		}, []string{"namespace", "problem"}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nixbuilders_configmap_writes_total",
			Help: "Writes of ConfigMap nix-machines, one for each change of its content.",
		}, []string{"namespace"}),
	}
	for _, collector := range []prometheus.Collector{m.size, m.lines, m.problems, m.writes} {
		if err := registerer.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Metrics) published(namespace string, content *Content, result outcome) {
	if result == written {
		m.writes.WithLabelValues(namespace).Inc()
	}
	m.size.WithLabelValues(namespace).Set(float64(content.Size()))
	m.lines.WithLabelValues(namespace).Set(float64(content.Lines))
}

// problem sets which problem there is; "" means none.
func (m *Metrics) problem(namespace, problem string) {
	for _, each := range []string{problemConflict, problemTooLarge} {
		value := 0.0
		if each == problem {
			value = 1
		}
		m.problems.WithLabelValues(namespace, each).Set(value)
	}
}

// forget removes a namespace without NixBuilders.
func (m *Metrics) forget(namespace string) {
	label := prometheus.Labels{"namespace": namespace}
	m.size.DeletePartialMatch(label)
	m.lines.DeletePartialMatch(label)
	m.problems.DeletePartialMatch(label)
	m.writes.DeletePartialMatch(label)
}
