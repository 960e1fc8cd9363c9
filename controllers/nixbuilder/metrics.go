// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// Metrics are the figures about builders and their probes. Their labels are
// bounded: names of objects, states and reasons, never texts of builders or addresses.
type Metrics struct {
	endpoints *prometheus.GaugeVec
	jobs      *prometheus.GaugeVec
	probes    *prometheus.CounterVec
	duration  *prometheus.HistogramVec
}

// NewMetrics registers the metrics.
func NewMetrics(registerer prometheus.Registerer) (*Metrics, error) {
	builderLabels := []string{"namespace", "builder"}
	m := &Metrics{
		endpoints: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixbuilders_endpoints",
			Help: "Endpoints of a NixBuilder by state.",
		}, append(builderLabels, "state")),
		jobs: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixbuilders_jobs",
			Help: "Builds that the endpoints of a NixBuilder which are not cordoned run at once.",
		}, builderLabels),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nixbuilders_probes_total",
			Help: "Probes that have ended, by the reason of the first step that failed, AllStepsPassed if none did.",
		}, []string{"reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "nixbuilders_probe_duration_seconds",
			Help:    "How long probes took, by result.",
			Buckets: []float64{.05, .1, .2, .5, 1, 2, 5, 10, 20, 60},
		}, []string{"result"}),
	}
	for _, collector := range []prometheus.Collector{m.endpoints, m.jobs, m.probes, m.duration} {
		if err := registerer.Register(collector); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// ProbeEnded counts a probe. The prober calls it.
func (m *Metrics) ProbeEnded(_ probe.Key, result probe.Result) {
	reason, ended := probe.ReasonAllPassed, "success"
	if failure, failed := result.Failure(); failed {
		reason, ended = failure.Reason, "failure"
	}
	m.probes.WithLabelValues(string(reason)).Inc()
	m.duration.WithLabelValues(ended).Observe(result.Duration.Seconds())
}

// observe sets the figures of a builder.
func (m *Metrics) observe(builder types.NamespacedName, status *v1alpha1.NixBuilderStatus) {
	states := map[v1alpha1.EndpointState]float64{
		v1alpha1.EndpointUnknown: 0, v1alpha1.EndpointHealthy: 0, v1alpha1.EndpointSuspect: 0, v1alpha1.EndpointUnhealthy: 0,
	}
	for i := range status.Endpoints {
		states[status.Endpoints[i].State]++
	}
	for state, number := range states {
		m.endpoints.WithLabelValues(builder.Namespace, builder.Name, string(state)).Set(number)
	}
	m.jobs.WithLabelValues(builder.Namespace, builder.Name).Set(float64(status.Jobs))
}

// forget drops the figures of a builder.
func (m *Metrics) forget(builder types.NamespacedName) {
	labels := prometheus.Labels{"namespace": builder.Namespace, "builder": builder.Name}
	m.endpoints.DeletePartialMatch(labels)
	m.jobs.DeletePartialMatch(labels)
}
