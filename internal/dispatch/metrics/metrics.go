// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package metrics shows what a dispatcher does to Prometheus.
//
// What happens is counted as it happens; what is, such as slots in use, is read
// from its owner when somebody asks, so that it cannot drift. Labels are IDs of
// builders, of which the builders file has a bounded number, and results: never
// store paths, classes or clients.
package metrics

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

const namespace = "nix_dispatcher"

// Ledger knows builders and who waits for them.
type Ledger interface {
	Snapshot() scheduler.Snapshot
	// Waiting is the number of requests that have no slot yet.
	Waiting() int
}

// Spool knows how full it is.
type Spool interface {
	Usage() spool.Usage
}

// Sources are asked whenever metrics are read. All are required.
type Sources struct {
	Ledger Ledger
	Spool  Spool
	// Connections is the number of clients' connections.
	Connections func() int
}

// Metrics counts events. It is safe for concurrent use.
type Metrics struct {
	builds *prometheus.CounterVec
	lost   *prometheus.CounterVec
	wait   prometheus.Histogram
}

// New registers the metrics of a dispatcher.
func New(registerer prometheus.Registerer, sources Sources) (*Metrics, error) {
	m := &Metrics{
		builds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "builds_total",
			Help: "Builds that have ended, by the builder that had them last and by result.",
		}, []string{"builder", "result"}),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "builders_lost_total",
			Help: "Builders that were lost while a build needed them. The build moved to another one unless it had to be given up.",
		}, []string{"builder"}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "wait_seconds",
			Help: "Time that builds waited for a slot and an open session on a builder.",
			// From a free slot to builders that are away for an hour.
			Buckets: []float64{0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600},
		}),
	}
	return m, errors.Join(
		registerer.Register(m.builds), registerer.Register(m.lost), registerer.Register(m.wait),
		registerer.Register(newCollector(sources)),
	)
}

// Waited counts a build that got a builder after that time.
func (m *Metrics) Waited(d time.Duration) { m.wait.Observe(d.Seconds()) }

// Ended counts a build that has ended. builder is empty if it never had one.
func (m *Metrics) Ended(builder, result string) { m.builds.WithLabelValues(builder, result).Inc() }

// Lost counts a builder that was lost while a build needed it.
func (m *Metrics) Lost(builder string) { m.lost.WithLabelValues(builder).Inc() }
