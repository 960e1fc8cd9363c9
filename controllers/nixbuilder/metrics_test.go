// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/types"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

func newTestMetrics(t *testing.T) (*Metrics, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	return metrics, registry
}

func TestMetricsOfBuilders(t *testing.T) {
	t.Parallel()
	metrics, registry := newTestMetrics(t)
	builder := types.NamespacedName{Namespace: "ci", Name: "mac"}
	metrics.observe(builder, &v1alpha1.NixBuilderStatus{Jobs: 8, Endpoints: []v1alpha1.EndpointStatus{
		{State: v1alpha1.EndpointHealthy, RefutedFeatures: []string{"kvm"}}, {State: v1alpha1.EndpointHealthy, Cordon: builders.MakeCordon("x", time.Time{})},
		{State: v1alpha1.EndpointSuspect, RefutedSystems: []string{"i686-linux", "riscv64-linux"}},
	}}, nil)
	want := `
# HELP nixbuilders_endpoints Endpoints of a NixBuilder by state.
# TYPE nixbuilders_endpoints gauge
nixbuilders_endpoints{builder="mac",namespace="ci",state="Healthy"} 2
nixbuilders_endpoints{builder="mac",namespace="ci",state="Suspect"} 1
nixbuilders_endpoints{builder="mac",namespace="ci",state="Unhealthy"} 0
nixbuilders_endpoints{builder="mac",namespace="ci",state="Unknown"} 0
# HELP nixbuilders_endpoints_cordoned Endpoints of a NixBuilder that are cordoned, in whatever state.
# TYPE nixbuilders_endpoints_cordoned gauge
nixbuilders_endpoints_cordoned{builder="mac",namespace="ci"} 1
# HELP nixbuilders_jobs Builds that the endpoints of a NixBuilder which are not cordoned run at once.
# TYPE nixbuilders_jobs gauge
nixbuilders_jobs{builder="mac",namespace="ci"} 8
# HELP nixbuilders_refuted Systems and features (kind) that endpoints of a NixBuilder do not build for, though the spec or their configuration says so.
# TYPE nixbuilders_refuted gauge
nixbuilders_refuted{builder="mac",kind="feature",namespace="ci"} 1
nixbuilders_refuted{builder="mac",kind="system",namespace="ci"} 2
`
	names := []string{"nixbuilders_endpoints", "nixbuilders_endpoints_cordoned", "nixbuilders_jobs", "nixbuilders_refuted"}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	metrics.forget(builder)
	if n, err := testutil.GatherAndCount(registry, names...); n != 0 || err != nil {
		t.Errorf("%d figures of a forgotten builder, error %v", n, err)
	}
}

func TestMetricsOfProbes(t *testing.T) {
	t.Parallel()
	metrics, registry := newTestMetrics(t)
	good := healthySnapshot().Result
	good.Duration = 300 * time.Millisecond
	bad := failedSnapshot(probe.StateUnhealthy, probe.StepTrusted, probe.ReasonUserNotTrusted, "not trusted").Result
	for _, result := range []probe.Result{good, good, bad} {
		metrics.ProbeEnded(probe.Key{Namespace: "ci", Name: "mac"}, result)
	}
	want := `
# HELP nixbuilders_probes_total Probes that have ended, by the reason of the first step that failed, AllStepsPassed if none did.
# TYPE nixbuilders_probes_total counter
nixbuilders_probes_total{reason="AllStepsPassed"} 2
nixbuilders_probes_total{reason="UserNotTrusted"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "nixbuilders_probes_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(registry, "nixbuilders_probe_duration_seconds"); n != 2 || err != nil {
		t.Errorf("durations by %d results, error %v", n, err)
	}
}

func TestMetricsOfMachines(t *testing.T) {
	t.Parallel()
	metrics, registry := newTestMetrics(t)
	builder := types.NamespacedName{Namespace: "ci", Name: "mac"}
	linux, mac, silent := healthySnapshot(), healthySnapshot(), newSnapshot()
	linux.Result.Facts.StoreBytes, linux.Result.Facts.FreeBytes = 1<<40, 1<<30
	linux.Result.Facts.Processors, linux.Result.Facts.LoadPercent = 8, 150
	linux.Result.Facts.PressureKnown, linux.Result.Facts.IOPressure = true, 12
	linux.Result.Facts.ClockSkew = -2 * time.Second
	mac.Result.Facts.StoreBytes = 1 << 40
	silent.Result.Facts = linux.Result.Facts // of the time before it went away
	metrics.observe(builder, &v1alpha1.NixBuilderStatus{}, map[string]probe.Snapshot{"l": linux, "m": mac, "s": silent})
	want := `
# HELP nixbuilders_endpoint_clock_skew_seconds How far the machine's clock is ahead of the operator's.
# TYPE nixbuilders_endpoint_clock_skew_seconds gauge
nixbuilders_endpoint_clock_skew_seconds{builder="mac",endpoint="l",namespace="ci"} -2
nixbuilders_endpoint_clock_skew_seconds{builder="mac",endpoint="m",namespace="ci"} 0
# HELP nixbuilders_endpoint_free_bytes Room in the file system of the machine's Nix store.
# TYPE nixbuilders_endpoint_free_bytes gauge
nixbuilders_endpoint_free_bytes{builder="mac",endpoint="l",namespace="ci"} 1.073741824e+09
nixbuilders_endpoint_free_bytes{builder="mac",endpoint="m",namespace="ci"} 0
# HELP nixbuilders_endpoint_load_percent Load average of the machine's last minute, in percent of its processors.
# TYPE nixbuilders_endpoint_load_percent gauge
nixbuilders_endpoint_load_percent{builder="mac",endpoint="l",namespace="ci"} 150
# HELP nixbuilders_endpoint_pressure_percent Part of the machine's last minute in which some process waited for the resource.
# TYPE nixbuilders_endpoint_pressure_percent gauge
nixbuilders_endpoint_pressure_percent{builder="mac",endpoint="l",namespace="ci",resource="cpu"} 0
nixbuilders_endpoint_pressure_percent{builder="mac",endpoint="l",namespace="ci",resource="io"} 12
nixbuilders_endpoint_pressure_percent{builder="mac",endpoint="l",namespace="ci",resource="memory"} 0
`
	names := []string{
		"nixbuilders_endpoint_clock_skew_seconds", "nixbuilders_endpoint_free_bytes",
		"nixbuilders_endpoint_load_percent", "nixbuilders_endpoint_pressure_percent",
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	metrics.forget(builder)
	if n, err := testutil.GatherAndCount(registry, names...); n != 0 || err != nil {
		t.Errorf("%d figures of a forgotten builder, error %v", n, err)
	}
}

func TestMetricsOfRequestsAndLosses(t *testing.T) {
	t.Parallel()
	metrics, _ := newTestMetrics(t)
	metrics.ConnectionLost(probe.Key{Namespace: "ci", Name: "mac"})
	metrics.requestAnswered()
	metrics.requestAnswered()
	if lost, answered := testutil.ToFloat64(metrics.losses), testutil.ToFloat64(metrics.requests); lost != 1 || answered != 2 {
		t.Errorf("%v connections lost and %v requests answered, want 1 and 2", lost, answered)
	}
}

func TestMetricsRegisterOnce(t *testing.T) {
	t.Parallel()
	_, registry := newTestMetrics(t)
	if _, err := NewMetrics(registry); err == nil {
		t.Error("a second registration gave no error")
	}
}
