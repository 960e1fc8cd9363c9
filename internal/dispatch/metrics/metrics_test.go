// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package metrics

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

type ledger struct{}

func (ledger) Snapshot() scheduler.Snapshot {
	return scheduler.Snapshot{Builders: []scheduler.Builder{
		{ID: "mac/one", Slots: 8, Running: 3, Cordon: &scheduler.Cordon{}},
		{ID: "mac/two", Slots: 4, Down: "unreachable"},
	}}
}

func (ledger) Waiting() int { return 5 }

type fullSpool struct{}

func (fullSpool) Usage() spool.Usage { return spool.Usage{Bytes: 7, MaxBytes: 10} }

func register(t *testing.T) (*prometheus.Registry, *Metrics) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	m, err := New(registry, Sources{Ledger: ledger{}, Spool: fullSpool{}, Connections: func() int { return 2 }})
	if err != nil {
		t.Fatal(err)
	}
	return registry, m
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	registry, m := register(t)
	m.Ended("mac/one", "Built")
	m.Ended("mac/one", "Built")
	m.Ended("", "ClientGone")
	m.Lost("mac/two")
	m.Waited(2 * time.Second)
	want := `
# HELP nix_dispatcher_builder_slots Builds that a builder may run at once for this dispatcher.
# TYPE nix_dispatcher_builder_slots gauge
nix_dispatcher_builder_slots{builder="mac/one"} 8
nix_dispatcher_builder_slots{builder="mac/two"} 4
# HELP nix_dispatcher_builder_up 1 if a builder is healthy as far as this dispatcher knows, cordoned or not.
# TYPE nix_dispatcher_builder_up gauge
nix_dispatcher_builder_up{builder="mac/one"} 1
nix_dispatcher_builder_up{builder="mac/two"} 0
# HELP nix_dispatcher_builders_lost_total Builders that were lost while a build needed them. The build moved to another one unless it had to be given up.
# TYPE nix_dispatcher_builders_lost_total counter
nix_dispatcher_builders_lost_total{builder="mac/two"} 1
# HELP nix_dispatcher_builds_running Slots of a builder that are in use by this dispatcher.
# TYPE nix_dispatcher_builds_running gauge
nix_dispatcher_builds_running{builder="mac/one"} 3
nix_dispatcher_builds_running{builder="mac/two"} 0
# HELP nix_dispatcher_builds_total Builds that have ended, by the builder that had them last and by result.
# TYPE nix_dispatcher_builds_total counter
nix_dispatcher_builds_total{builder="",result="ClientGone"} 1
nix_dispatcher_builds_total{builder="mac/one",result="Built"} 2
# HELP nix_dispatcher_builds_waiting Builds that wait for a slot.
# TYPE nix_dispatcher_builds_waiting gauge
nix_dispatcher_builds_waiting 5
# HELP nix_dispatcher_client_connections Connections of clients.
# TYPE nix_dispatcher_client_connections gauge
nix_dispatcher_client_connections 2
# HELP nix_dispatcher_spool_bytes Space that NARs take in the spool, unfinished ones included.
# TYPE nix_dispatcher_spool_bytes gauge
nix_dispatcher_spool_bytes 7
# HELP nix_dispatcher_spool_limit_bytes Most space that NARs may take in the spool.
# TYPE nix_dispatcher_spool_limit_bytes gauge
nix_dispatcher_spool_limit_bytes 10
# HELP nix_dispatcher_wait_seconds Time that builds waited for a slot and an open session on a builder.
# TYPE nix_dispatcher_wait_seconds histogram
nix_dispatcher_wait_seconds_bucket{le="0.01"} 0
nix_dispatcher_wait_seconds_bucket{le="0.1"} 0
nix_dispatcher_wait_seconds_bucket{le="0.5"} 0
nix_dispatcher_wait_seconds_bucket{le="1"} 0
nix_dispatcher_wait_seconds_bucket{le="5"} 1
nix_dispatcher_wait_seconds_bucket{le="15"} 1
nix_dispatcher_wait_seconds_bucket{le="60"} 1
nix_dispatcher_wait_seconds_bucket{le="300"} 1
nix_dispatcher_wait_seconds_bucket{le="900"} 1
nix_dispatcher_wait_seconds_bucket{le="3600"} 1
nix_dispatcher_wait_seconds_bucket{le="+Inf"} 1
nix_dispatcher_wait_seconds_sum 2
nix_dispatcher_wait_seconds_count 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

func TestRegisteredTwice(t *testing.T) {
	t.Parallel()
	registry, _ := register(t)
	if _, err := New(registry, Sources{}); err == nil {
		t.Error("the same metrics were registered twice")
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	registry, m := register(t)
	m.Ended("b", "Built")
	m.Lost("b")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var registered []string
	for _, family := range families {
		registered = append(registered, family.GetName())
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `("+namespace+"_\\w+)` ").FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, row[1])
	}
	slices.Sort(documented)
	if diff := cmp.Diff(registered, documented); diff != "" {
		t.Errorf("docs/metrics.md (-registered +documented):\n%s", diff)
	}
}
