// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// collector reads the present state from its owners.
type collector struct {
	sources Sources
	classes *classNames
	// all are the figures in the order of newCollector.
	all []*prometheus.Desc

	running, orphaned, slots, up, cordoned *prometheus.Desc
	connections, opening, sessions         *prometheus.Desc
	perConnection, transfers               *prometheus.Desc
	sent, received                         *prometheus.Desc
	waiting, longest, usable               *prometheus.Desc
	phases, clients                        *prometheus.Desc
	spoolBytes, spoolLimit, spoolPaths     *prometheus.Desc
	evictions, refusals, failures          *prometheus.Desc
}

func newCollector(sources Sources, classes *classNames) *collector {
	c := &collector{sources: sources, classes: classes}
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		d := prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
		c.all = append(c.all, d)
		return d
	}
	c.running = describe("builds_running", "Slots of a builder that are in use by builds of this dispatcher.", "builder")
	c.orphaned = describe("builder_orphaned_slots", "Slots of a builder that stay counted because the build on them was lost by silence and may still run.", "builder")
	c.slots = describe("builder_slots", "Builds that a builder may run at once for this dispatcher.", "builder")
	c.up = describe("builder_up", "1 if a builder is healthy as far as this dispatcher knows, cordoned or not.", "builder")
	c.cordoned = describe("builder_cordoned", "1 if a builder is cordoned: it takes no new builds.", "builder")

	c.connections = describe("builder_connections", "SSH connections to a builder, by kind: interactive ones carry builds, bulk ones large transfers.", "builder", "kind")
	c.opening = describe("builder_handshakes", "SSH connections to a builder that are being made.", "builder")
	c.sessions = describe("builder_sessions", "Sessions of nix-daemon on a builder, by state: busy, idle, or keeper for those that hold store paths.", "builder", "state")
	c.perConnection = describe("builder_sessions_per_connection", "Sessions that a builder admits on one connection, as far as is known.", "builder")
	c.transfers = describe("builder_transfers", "Large transfers to or from a builder.", "builder")
	c.sent = describe("builder_sent_bytes_total", "Bytes that sessions have sent to a builder, without what SSH adds.", "builder")
	c.received = describe("builder_received_bytes_total", "Bytes that sessions have received from a builder, without what SSH adds.", "builder")

	c.waiting = describe("builds_waiting", "Builds that wait for a slot, by class.", "class")
	c.longest = describe("longest_wait_seconds", "Time that the build which came first of those that wait has waited, by class.", "class")
	c.usable = describe("class_usable_builders", "Builders that could run builds of a class: healthy, not cordoned, with all features. Classes are those of builds that were seen.", "class")

	c.phases = describe("builds", "Builds under way, by phase.", "phase")
	c.clients = describe("client_connections", "Connections of clients.")

	c.spoolBytes = describe("spool_bytes", "Space that NARs take in the spool, unfinished ones included.")
	c.spoolLimit = describe("spool_limit_bytes", "Most space that NARs may take in the spool.")
	c.spoolPaths = describe("spool_files", "NARs in the spool.")
	c.evictions = describe("spool_evictions_total", "NARs that the spool dropped to make room.")
	c.refusals = describe("spool_refusals_total", "NARs for which the spool had no room. They stream past it.")
	c.failures = describe("spool_failures_total", "NARs that could not be written to the spool's file system.")
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.all {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := sink{ch: ch}
	snapshot := c.sources.Ledger.Snapshot()
	for i := range snapshot.Builders {
		c.collectBuilder(s, &snapshot.Builders[i], snapshot.Now)
	}
	for _, stats := range c.sources.Fleet.Stats() {
		c.collectPool(s, stats)
	}
	c.collectQueue(s, snapshot)
	for phase, n := range c.sources.Phases() {
		s.gauge(c.phases, float64(n), phase)
	}
	s.gauge(c.clients, float64(c.sources.Connections()))
	usage := c.sources.Spool.Usage()
	s.gauge(c.spoolBytes, float64(usage.Bytes))
	s.gauge(c.spoolLimit, float64(usage.MaxBytes))
	s.gauge(c.spoolPaths, float64(usage.Paths))
	s.counter(c.evictions, usage.Evictions)
	s.counter(c.refusals, usage.Refusals)
	s.counter(c.failures, usage.Failures)
}

func (c *collector) collectBuilder(s sink, b *scheduler.Builder, now time.Time) {
	s.gauge(c.running, float64(b.Running-b.Orphaned), b.ID)
	s.gauge(c.orphaned, float64(b.Orphaned), b.ID)
	s.gauge(c.slots, float64(b.Slots), b.ID)
	s.gauge(c.up, truth(b.Down == ""), b.ID)
	s.gauge(c.cordoned, truth(b.Cordoned(now)), b.ID)
}

func (c *collector) collectPool(s sink, stats fleet.Stats) {
	s.gauge(c.connections, float64(stats.Connections), stats.Builder, "interactive")
	s.gauge(c.connections, float64(stats.BulkConnections), stats.Builder, "bulk")
	s.gauge(c.opening, float64(stats.Handshakes), stats.Builder)
	s.gauge(c.sessions, float64(stats.BusySessions), stats.Builder, "busy")
	s.gauge(c.sessions, float64(stats.IdleSessions), stats.Builder, "idle")
	s.gauge(c.sessions, float64(stats.Keepers), stats.Builder, "keeper")
	s.gauge(c.perConnection, float64(stats.SessionLimit), stats.Builder)
	s.gauge(c.transfers, float64(stats.Transfers), stats.Builder)
	s.counter(c.sent, stats.SentBytes, stats.Builder)
	s.counter(c.received, stats.ReceivedBytes, stats.Builder)
}

// collectQueue tells of every class that has been seen, waiting or not: a series that
// comes and goes is hard to alert on.
func (c *collector) collectQueue(s sink, snapshot scheduler.Snapshot) {
	waiting, longest := map[string]int{}, map[string]time.Duration{}
	for _, depth := range c.sources.Ledger.Depths() {
		label := c.classes.label(depth.Class)
		waiting[label] += depth.Waiting
		longest[label] = max(longest[label], snapshot.Now.Sub(depth.Oldest))
	}
	for label, class := range c.classes.seen() {
		usable := 0
		for i := range snapshot.Builders {
			if b := &snapshot.Builders[i]; b.Usable(snapshot.Now) && b.Serves(class) {
				usable++
			}
		}
		s.gauge(c.usable, float64(usable), label)
		waiting[label] += 0
	}
	for label, n := range waiting {
		s.gauge(c.waiting, float64(n), label)
		s.gauge(c.longest, longest[label].Seconds(), label)
	}
}

// sink makes metrics.
type sink struct {
	ch chan<- prometheus.Metric
}

func (s sink) gauge(d *prometheus.Desc, value float64, labels ...string) {
	s.ch <- metric(d, prometheus.GaugeValue, value, labels)
}

func (s sink) counter(d *prometheus.Desc, value uint64, labels ...string) {
	s.ch <- metric(d, prometheus.CounterValue, float64(value), labels)
}

func metric(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels []string) prometheus.Metric {
	for i, label := range labels {
		labels[i] = text(label)
	}
	return prometheus.MustNewConstMetric(d, kind, value, labels...)
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
