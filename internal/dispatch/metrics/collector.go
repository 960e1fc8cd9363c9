// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
)

// collector reads the present state from its owners.
type collector struct {
	sources Sources

	running, slots, up      *prometheus.Desc
	waiting, connections    *prometheus.Desc
	spoolBytes, spoolLimits *prometheus.Desc
}

func newCollector(sources Sources) *collector {
	gauge := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	return &collector{
		sources:     sources,
		running:     gauge("builds_running", "Slots of a builder that are in use by this dispatcher.", "builder"),
		slots:       gauge("builder_slots", "Builds that a builder may run at once for this dispatcher.", "builder"),
		up:          gauge("builder_up", "1 if a builder is healthy as far as this dispatcher knows, cordoned or not.", "builder"),
		waiting:     gauge("builds_waiting", "Builds that wait for a slot."),
		connections: gauge("client_connections", "Connections of clients."),
		spoolBytes:  gauge("spool_bytes", "Space that NARs take in the spool, unfinished ones included."),
		spoolLimits: gauge("spool_limit_bytes", "Most space that NARs may take in the spool."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.running, c.slots, c.up, c.waiting, c.connections, c.spoolBytes, c.spoolLimits} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, b := range c.sources.Ledger.Snapshot().Builders {
		up := 0.0
		if b.Down == "" {
			up = 1
		}
		gauge(c.running, float64(b.Running), b.ID)
		gauge(c.slots, float64(b.Slots), b.ID)
		gauge(c.up, up, b.ID)
	}
	gauge(c.waiting, float64(c.sources.Ledger.Waiting()))
	gauge(c.connections, float64(c.sources.Connections()))
	usage := c.sources.Spool.Usage()
	gauge(c.spoolBytes, float64(usage.Bytes))
	gauge(c.spoolLimits, float64(usage.MaxBytes))
}
