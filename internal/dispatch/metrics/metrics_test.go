// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package metrics

import (
	"fmt"
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

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

var (
	now   = time.Date(2026, 8, 3, 14, 2, 11, 0, time.UTC)
	plain = scheduler.Need("x86_64-linux", nil)
	kvm   = scheduler.Need("x86_64-linux", []string{"kvm"})
)

type ledger struct{}

func (ledger) Snapshot() scheduler.Snapshot {
	return scheduler.Snapshot{Now: now, Builders: []scheduler.Builder{
		{ID: "mac/one", Systems: []string{"x86_64-linux"}, Slots: 8, Running: 3, Orphaned: 1},
		{ID: "mac/two", Systems: []string{"x86_64-linux"}, Supported: []string{"kvm"}, Slots: 4, Down: "unreachable"},
		{ID: "mac/three", Systems: []string{"x86_64-linux"}, Supported: []string{"kvm"}, Slots: 4, Cordon: &scheduler.Cordon{}},
	}}
}

func (ledger) Depths() []scheduler.Depth {
	return []scheduler.Depth{{Class: kvm, Waiting: 5, Oldest: now.Add(-time.Minute)}}
}

type pools struct{}

func (pools) Stats() []fleet.Stats {
	return []fleet.Stats{{
		Builder: "mac/one", Connections: 1, BulkConnections: 2, BusySessions: 3, IdleSessions: 4, Keepers: 5,
		Transfers: 6, SessionLimit: 7, Handshakes: 8, SentBytes: 9, ReceivedBytes: 10,
	}}
}

type fullSpool struct{}

func (fullSpool) Usage() spool.Usage {
	return spool.Usage{Bytes: 7, MaxBytes: 10, Paths: 3, Evictions: 4, Refusals: 5, Failures: 6}
}

func register(t *testing.T) (*prometheus.Registry, *Metrics) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	m, err := New(registry, Sources{
		Ledger: ledger{}, Fleet: pools{}, Spool: fullSpool{}, Connections: func() int { return 2 },
		Phases: func() map[string]int { return map[string]int{"Building": 3, "Queued": 0} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return registry, m
}

// happen tells m of one event of each kind.
func happen(m *Metrics) {
	m.Ended(plain, "mac/one", "Built")
	m.Ended(plain, "mac/one", "Built")
	m.Ended(kvm, "", "ClientGone")
	m.Joined()
	m.FailedOver("mac/two", "Uploading")
	m.Waited(kvm, 2*time.Second)
	m.Dispatched(20 * time.Millisecond)
	m.Missed(3)
	m.BrokeProtocol("client")
}

// All metrics as Prometheus reads them, in testdata/metrics.txt.
func TestMetrics(t *testing.T) {
	t.Parallel()
	registry, m := register(t)
	happen(m)
	want, err := os.Open(filepath.Join("testdata", "metrics.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	if err := testutil.GatherAndCompare(registry, want); err != nil {
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

// Derivations can ask for anything, so the number of classes is bounded here.
func TestClassesAreBounded(t *testing.T) {
	t.Parallel()
	names := newClassNames(2)
	for _, step := range []struct{ system, want string }{
		{"x86_64-linux", "x86_64-linux"},
		{strings.Repeat("x", maxClassLength+1), otherClasses},
		{"no text \xff", otherClasses},
		{"aarch64-linux", "aarch64-linux"},
		{"one-too-many", otherClasses},
		{"x86_64-linux", "x86_64-linux"},
	} {
		if got := names.label(scheduler.Need(step.system, nil)); got != step.want {
			t.Errorf("label of %q = %q, want %q", step.system, got, step.want)
		}
	}
	if got := names.label(kvm); got != otherClasses {
		t.Errorf("label with a feature = %q, want %q", got, otherClasses)
	}
	if got := len(names.seen()); got != 2 {
		t.Errorf("%d classes were seen, want 2", got)
	}

	registry, m := register(t)
	for i := range 2 * maxClasses {
		m.Ended(scheduler.Need(fmt.Sprintf("system-%d", i), nil), "b\xff", "Built")
	}
	count, err := testutil.GatherAndCount(registry, "nix_dispatcher_builds_total")
	if err != nil || count != maxClasses+1 {
		t.Errorf("%d series of builds, %v, want %d", count, err, maxClasses+1)
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	registry, m := register(t)
	happen(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var registered []string
	for _, family := range families {
		var labels []string
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+label.GetName()+"`")
		}
		slices.Sort(labels)
		registered = append(registered, fmt.Sprintf("%s, a %s with %s",
			family.GetName(), strings.ToLower(family.GetType().String()), strings.Join(labels, ", ")))
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	row := regexp.MustCompile("(?m)^\\| `(" + namespace + "_\\w+)` \\| (\\w+) \\| (.*?) ?\\| ")
	for _, cells := range row.FindAllStringSubmatch(string(page), -1) {
		labels := strings.Split(cells[3], ", ")
		slices.Sort(labels)
		documented = append(documented, fmt.Sprintf("%s, a %s with %s", cells[1], cells[2], strings.Join(labels, ", ")))
	}
	slices.Sort(registered)
	slices.Sort(documented)
	if diff := cmp.Diff(registered, documented); diff != "" {
		t.Errorf("docs/metrics.md (-registered +documented):\n%s", diff)
	}
}
