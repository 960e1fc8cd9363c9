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
		{State: v1alpha1.EndpointHealthy}, {State: v1alpha1.EndpointHealthy}, {State: v1alpha1.EndpointSuspect},
	}})
	want := `
# HELP nixbuilders_endpoints Endpoints of a NixBuilder by state.
# TYPE nixbuilders_endpoints gauge
nixbuilders_endpoints{builder="mac",namespace="ci",state="Healthy"} 2
nixbuilders_endpoints{builder="mac",namespace="ci",state="Suspect"} 1
nixbuilders_endpoints{builder="mac",namespace="ci",state="Unhealthy"} 0
nixbuilders_endpoints{builder="mac",namespace="ci",state="Unknown"} 0
# HELP nixbuilders_jobs Builds that the endpoints of a NixBuilder which are not cordoned run at once.
# TYPE nixbuilders_jobs gauge
nixbuilders_jobs{builder="mac",namespace="ci"} 8
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "nixbuilders_endpoints", "nixbuilders_jobs"); err != nil {
		t.Error(err)
	}
	metrics.forget(builder)
	if n, err := testutil.GatherAndCount(registry, "nixbuilders_endpoints", "nixbuilders_jobs"); n != 0 || err != nil {
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

func TestMetricsRegisterOnce(t *testing.T) {
	t.Parallel()
	_, registry := newTestMetrics(t)
	if _, err := NewMetrics(registry); err == nil {
		t.Error("a second registration gave no error")
	}
}
