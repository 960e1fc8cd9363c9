// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// figures are what probes measure on machines. They change all the time and are
// therefore told here alone. A machine that could not be measured has none.
type figures struct {
	free, load, pressure, skew *prometheus.Desc

	mu    sync.Mutex
	facts map[types.NamespacedName]map[string]probe.Facts // by builder and endpoint
}

func newFigures() *figures {
	labels := []string{"namespace", "builder", "endpoint"}
	desc := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append(labels[:3:3], more...), nil)
	}
	return &figures{
		free:     desc("nixbuilders_endpoint_free_bytes", "Room in the file system of the machine's Nix store."),
		load:     desc("nixbuilders_endpoint_load_percent", "Load average of the machine's last minute, in percent of its processors."),
		pressure: desc("nixbuilders_endpoint_pressure_percent", "Part of the machine's last minute in which some process waited for the resource.", "resource"),
		skew:     desc("nixbuilders_endpoint_clock_skew_seconds", "How far the machine's clock is ahead of the operator's."),
		facts:    map[types.NamespacedName]map[string]probe.Facts{},
	}
}

// set takes over what is known of a builder's machines.
func (f *figures) set(builder types.NamespacedName, snapshots map[string]probe.Snapshot) {
	facts := make(map[string]probe.Facts, len(snapshots))
	for endpoint, snapshot := range snapshots {
		// Facts stay what they were where a probe did not get that far.
		if snapshot.Result.Outcome(probe.StepMachineFit).Status != probe.StatusUnknown {
			facts[endpoint] = snapshot.Result.Facts
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.facts[builder] = facts
}

func (f *figures) forget(builder types.NamespacedName) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.facts, builder)
}

// Describe is what a registry asks.
func (f *figures) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{f.free, f.load, f.pressure, f.skew} {
		out <- desc
	}
}

// Collect is what a registry asks.
func (f *figures) Collect(out chan<- prometheus.Metric) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for builder, endpoints := range f.facts {
		for endpoint := range endpoints {
			f.collect(out, endpoints[endpoint], builder.Namespace, builder.Name, endpoint)
		}
	}
}

// collect tells of one machine.
func (f *figures) collect(out chan<- prometheus.Metric, facts probe.Facts, labels ...string) {
	gauge := func(desc *prometheus.Desc, value float64, more ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append(labels[:3:3], more...)...)
	}
	if facts.StoreBytes > 0 {
		gauge(f.free, float64(facts.FreeBytes))
		gauge(f.skew, facts.ClockSkew.Seconds())
	}
	if facts.Processors > 0 {
		gauge(f.load, float64(facts.LoadPercent))
	}
	if facts.PressureKnown {
		gauge(f.pressure, float64(facts.CPUPressure), "cpu")
		gauge(f.pressure, float64(facts.MemoryPressure), "memory")
		gauge(f.pressure, float64(facts.IOPressure), "io")
	}
}
