// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package metrics shows what a dispatcher does to Prometheus.
//
// What happens is counted as it happens; what is, such as slots in use, is read
// from its owner when somebody asks, so that it cannot drift. Labels are IDs of
// builders, of which the builders file has a bounded number, classes of builds, of
// which the first hundred are told apart, and words of this program: never store
// paths or clients.
package metrics

import (
	"errors"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

const namespace = "nix_dispatcher"

// Ledger knows builders and who waits for them.
type Ledger interface {
	Snapshot() scheduler.Snapshot
	// Depths counts the requests that have no slot yet.
	Depths() []scheduler.Depth
}

// Fleet knows the connections to builders.
type Fleet interface {
	Stats() []fleet.Stats
}

// Spool knows how full it is.
type Spool interface {
	Usage() spool.Usage
}

// Sources are asked whenever metrics are read. All are required.
type Sources struct {
	Ledger Ledger
	Fleet  Fleet
	Spool  Spool
	// Connections is the number of clients' connections.
	Connections func() int
	// Phases is the number of builds in each phase, of which there are few.
	Phases func() map[string]int
}

// Metrics counts events. It is safe for concurrent use.
type Metrics struct {
	classes    *classNames
	builds     *prometheus.CounterVec
	joined     prometheus.Counter
	failovers  *prometheus.CounterVec
	wait       *prometheus.HistogramVec
	dispatch   prometheus.Histogram
	missed     prometheus.Counter
	violations *prometheus.CounterVec
}

// New registers the metrics of a dispatcher.
func New(registerer prometheus.Registerer, sources Sources) (*Metrics, error) {
	m := &Metrics{
		classes: newClassNames(maxClasses),
		builds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "builds_total",
			Help: "Builds that have ended, by class, by the builder that had them last and by result.",
		}, []string{"class", "builder", "result"}),
		joined: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "builds_shared_total",
			Help: "Builds that were not run because an equal one of another client was under way.",
		}),
		failovers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "failovers_total",
			Help: "Builders that a build has left because they were lost or failed it, by what it did there. The build moved to another one unless it had to be given up.",
		}, []string{"builder", "phase"}),
		wait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "wait_seconds",
			Help: "Time that builds waited for a slot and an open session on a builder, by class.",
			// From a free slot to builders that are away for an hour.
			Buckets: []float64{0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600},
		}, []string{"class"}),
		dispatch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "dispatch_seconds",
			Help: "Time from the client's request to the builder's for builds that did not wait for a slot, transfer of missing inputs included.",
			// From a kept session on loopback to gigabytes of inputs over a long line.
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60},
		}),
		missed: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "log_lines_missed_total",
			Help: "Lines of builds' logs that clients did not get because they read too slowly.",
		}),
		violations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "protocol_errors_total",
			Help: "Messages that made no sense, by the side that sent them: client or builder.",
		}, []string{"side"}),
	}
	for _, side := range []string{"client", "builder"} {
		m.violations.WithLabelValues(side) // the first one is to be seen as an increase
	}
	return m, errors.Join(
		registerer.Register(m.builds), registerer.Register(m.joined), registerer.Register(m.failovers),
		registerer.Register(m.wait), registerer.Register(m.dispatch), registerer.Register(m.missed),
		registerer.Register(m.violations), registerer.Register(newCollector(sources, m.classes)),
	)
}

// Waited counts a build of a class that got a builder after that time.
func (m *Metrics) Waited(class scheduler.Class, d time.Duration) {
	m.wait.WithLabelValues(m.classes.label(class)).Observe(d.Seconds())
}

// Dispatched counts a build that did not wait and was sent to its builder after
// that time.
func (m *Metrics) Dispatched(d time.Duration) { m.dispatch.Observe(d.Seconds()) }

// Joined counts a build that shares another's run.
func (m *Metrics) Joined() { m.joined.Inc() }

// Ended counts a build that has ended. builder is empty if it never had one.
func (m *Metrics) Ended(class scheduler.Class, builder, result string) {
	m.builds.WithLabelValues(m.classes.label(class), text(builder), result).Inc()
}

// FailedOver counts a builder that was left by a build in that phase.
func (m *Metrics) FailedOver(builder, phase string) {
	m.failovers.WithLabelValues(text(builder), phase).Inc()
}

// Missed counts lines of a build's log that a client did not get.
func (m *Metrics) Missed(lines int) { m.missed.Add(float64(lines)) }

// BrokeProtocol counts a message of that side that made no sense.
func (m *Metrics) BrokeProtocol(side string) { m.violations.WithLabelValues(side).Inc() }

// text makes the value of a label of a builder's ID, whatever a builders file holds.
func text(id string) string { return strings.ToValidUTF8(id, "\uFFFD") }
