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
	cordoned  *prometheus.GaugeVec
	refuted   *prometheus.GaugeVec
	jobs      *prometheus.GaugeVec
	figures   *figures
	probes    *prometheus.CounterVec
	requests  prometheus.Counter
	losses    prometheus.Counter
	duration  *prometheus.HistogramVec
}

// Values of label kind of what is refuted.
const (
	kindSystem  = "system"
	kindFeature = "feature"
)

// NewMetrics registers the metrics.
func NewMetrics(registerer prometheus.Registerer) (*Metrics, error) {
	builderLabels := []string{"namespace", "builder"}
	m := &Metrics{
		endpoints: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixbuilders_endpoints",
			Help: "Endpoints of a NixBuilder by state.",
		}, append(builderLabels[:2:2], "state")),
		cordoned: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixbuilders_endpoints_cordoned",
			Help: "Endpoints of a NixBuilder that are cordoned, in whatever state.",
		}, builderLabels),
		refuted: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixbuilders_refuted",
			Help: "Systems and features (kind) that endpoints of a NixBuilder do not build for, though the spec or their configuration says so.",
		}, append(builderLabels[:2:2], "kind")),
		figures: newFigures(),
		jobs: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nixbuilders_jobs",
			Help: "Builds that the endpoints of a NixBuilder which are not cordoned run at once.",
		}, builderLabels),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nixbuilders_probes_total",
			Help: "Probes that have ended, by the reason of the first step that failed, AllStepsPassed if none did.",
		}, []string{"reason"}),
		requests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nixbuilders_probe_requests_total",
			Help: "Probes that were requested by annotation and whose result is in status.lastProbe.",
		}),
		losses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nixbuilders_kept_connections_lost_total",
			Help: "Connections kept between probes that ended by themselves. Each has the machine probed at once.",
		}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "nixbuilders_probe_duration_seconds",
			Help:    "How long probes took, by result.",
			Buckets: []float64{.05, .1, .2, .5, 1, 2, 5, 10, 20, 60},
		}, []string{"result"}),
	}
	for _, collector := range []prometheus.Collector{
		m.endpoints, m.cordoned, m.refuted, m.jobs, m.figures, m.probes, m.requests, m.losses, m.duration,
	} {
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

// ConnectionLost counts a kept connection. The prober calls it.
func (m *Metrics) ConnectionLost(probe.Key) { m.losses.Inc() }

// requestAnswered counts a requested probe.
func (m *Metrics) requestAnswered() { m.requests.Inc() }

// observe sets the figures of a builder.
func (m *Metrics) observe(builder types.NamespacedName, status *v1alpha1.NixBuilderStatus, snapshots map[string]probe.Snapshot) {
	m.figures.set(builder, snapshots)
	states := map[v1alpha1.EndpointState]float64{
		v1alpha1.EndpointUnknown: 0, v1alpha1.EndpointHealthy: 0, v1alpha1.EndpointSuspect: 0, v1alpha1.EndpointUnhealthy: 0,
	}
	cordoned, systems, features := 0, 0, 0
	for i := range status.Endpoints {
		endpoint := &status.Endpoints[i]
		states[endpoint.State]++
		if endpoint.Cordon != nil {
			cordoned++
		}
		systems += len(endpoint.RefutedSystems)
		features += len(endpoint.RefutedFeatures)
	}
	m.cordoned.WithLabelValues(builder.Namespace, builder.Name).Set(float64(cordoned))
	m.refuted.WithLabelValues(builder.Namespace, builder.Name, kindSystem).Set(float64(systems))
	m.refuted.WithLabelValues(builder.Namespace, builder.Name, kindFeature).Set(float64(features))
	for state, number := range states {
		m.endpoints.WithLabelValues(builder.Namespace, builder.Name, string(state)).Set(number)
	}
	m.jobs.WithLabelValues(builder.Namespace, builder.Name).Set(float64(status.Jobs))
}

// forget drops the figures of a builder.
func (m *Metrics) forget(builder types.NamespacedName) {
	labels := prometheus.Labels{"namespace": builder.Namespace, "builder": builder.Name}
	for _, vector := range []*prometheus.GaugeVec{m.endpoints, m.cordoned, m.refuted, m.jobs} {
		vector.DeletePartialMatch(labels)
	}
	m.figures.forget(builder)
}
