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
	plain, kvm := scheduler.Need("x86_64-linux", nil), scheduler.Need("x86_64-linux", []string{"kvm"})
	m.Ended(plain, "mac/one", "Built")
	m.Ended(plain, "mac/one", "Built")
	m.Ended(kvm, "", "ClientGone")
	m.Joined()
	m.FailedOver("mac/two", "Uploading")
	m.Waited(kvm, 2*time.Second)
	m.Dispatched(20 * time.Millisecond)
	m.Missed(3)
	m.BrokeProtocol("client")
	want := `
# HELP nix_dispatcher_builder_slots Builds that a builder may run at once for this dispatcher.
# TYPE nix_dispatcher_builder_slots gauge
nix_dispatcher_builder_slots{builder="mac/one"} 8
nix_dispatcher_builder_slots{builder="mac/two"} 4
# HELP nix_dispatcher_builder_up 1 if a builder is healthy as far as this dispatcher knows, cordoned or not.
# TYPE nix_dispatcher_builder_up gauge
nix_dispatcher_builder_up{builder="mac/one"} 1
nix_dispatcher_builder_up{builder="mac/two"} 0
# HELP nix_dispatcher_builds_running Slots of a builder that are in use by this dispatcher.
# TYPE nix_dispatcher_builds_running gauge
nix_dispatcher_builds_running{builder="mac/one"} 3
nix_dispatcher_builds_running{builder="mac/two"} 0
# HELP nix_dispatcher_builds_shared_total Builds that were not run because an equal one of another client was under way.
# TYPE nix_dispatcher_builds_shared_total counter
nix_dispatcher_builds_shared_total 1
# HELP nix_dispatcher_builds_total Builds that have ended, by class, by the builder that had them last and by result.
# TYPE nix_dispatcher_builds_total counter
nix_dispatcher_builds_total{builder="",class="x86_64-linux with kvm",result="ClientGone"} 1
nix_dispatcher_builds_total{builder="mac/one",class="x86_64-linux",result="Built"} 2
# HELP nix_dispatcher_builds_waiting Builds that wait for a slot.
# TYPE nix_dispatcher_builds_waiting gauge
nix_dispatcher_builds_waiting 5
# HELP nix_dispatcher_client_connections Connections of clients.
# TYPE nix_dispatcher_client_connections gauge
nix_dispatcher_client_connections 2
# HELP nix_dispatcher_dispatch_seconds Time from the client's request to the builder's for builds that did not wait for a slot, transfer of missing inputs included.
# TYPE nix_dispatcher_dispatch_seconds histogram
nix_dispatcher_dispatch_seconds_bucket{le="0.001"} 0
nix_dispatcher_dispatch_seconds_bucket{le="0.0025"} 0
nix_dispatcher_dispatch_seconds_bucket{le="0.005"} 0
nix_dispatcher_dispatch_seconds_bucket{le="0.01"} 0
nix_dispatcher_dispatch_seconds_bucket{le="0.025"} 1
nix_dispatcher_dispatch_seconds_bucket{le="0.05"} 1
nix_dispatcher_dispatch_seconds_bucket{le="0.1"} 1
nix_dispatcher_dispatch_seconds_bucket{le="0.25"} 1
nix_dispatcher_dispatch_seconds_bucket{le="0.5"} 1
nix_dispatcher_dispatch_seconds_bucket{le="1"} 1
nix_dispatcher_dispatch_seconds_bucket{le="2.5"} 1
nix_dispatcher_dispatch_seconds_bucket{le="10"} 1
nix_dispatcher_dispatch_seconds_bucket{le="60"} 1
nix_dispatcher_dispatch_seconds_bucket{le="+Inf"} 1
nix_dispatcher_dispatch_seconds_sum 0.02
nix_dispatcher_dispatch_seconds_count 1
# HELP nix_dispatcher_failovers_total Builders that a build has left because they were lost or failed it, by what it did there. The build moved to another one unless it had to be given up.
# TYPE nix_dispatcher_failovers_total counter
nix_dispatcher_failovers_total{builder="mac/two",phase="Uploading"} 1
# HELP nix_dispatcher_log_lines_missed_total Lines of builds' logs that clients did not get because they read too slowly.
# TYPE nix_dispatcher_log_lines_missed_total counter
nix_dispatcher_log_lines_missed_total 3
# HELP nix_dispatcher_protocol_errors_total Messages that made no sense, by the side that sent them: client or builder.
# TYPE nix_dispatcher_protocol_errors_total counter
nix_dispatcher_protocol_errors_total{side="client"} 1
# HELP nix_dispatcher_spool_bytes Space that NARs take in the spool, unfinished ones included.
# TYPE nix_dispatcher_spool_bytes gauge
nix_dispatcher_spool_bytes 7
# HELP nix_dispatcher_spool_limit_bytes Most space that NARs may take in the spool.
# TYPE nix_dispatcher_spool_limit_bytes gauge
nix_dispatcher_spool_limit_bytes 10
# HELP nix_dispatcher_wait_seconds Time that builds waited for a slot and an open session on a builder, by class.
# TYPE nix_dispatcher_wait_seconds histogram
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="0.01"} 0
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="0.1"} 0
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="0.5"} 0
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="1"} 0
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="5"} 1
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="15"} 1
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="60"} 1
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="300"} 1
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="900"} 1
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="3600"} 1
nix_dispatcher_wait_seconds_bucket{class="x86_64-linux with kvm",le="+Inf"} 1
nix_dispatcher_wait_seconds_sum{class="x86_64-linux with kvm"} 2
nix_dispatcher_wait_seconds_count{class="x86_64-linux with kvm"} 1
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
	m.Ended(scheduler.Class{}, "b", "Built")
	m.FailedOver("b", "Building")
	m.Waited(scheduler.Class{}, 0)
	m.BrokeProtocol("client")
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
