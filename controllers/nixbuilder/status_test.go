// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

func at(t time.Time) *metav1.Time { return &metav1.Time{Time: t} }

// healthyStatus is the status of endpoint a after a good probe.
func healthyStatus() v1alpha1.EndpointStatus {
	return v1alpha1.EndpointStatus{
		Name: "a", Address: "a.example.com:22", State: v1alpha1.EndpointHealthy, Reason: "AllStepsPassed", Message: "all is well",
		NixVersion: "2.26.3", ProtocolVersion: "1.38",
		Systems: []string{"x86_64-linux"}, Features: []string{"big-parallel", "kvm"}, MaxJobs: 4, Cores: 8,
		HostKey: builders.HostKey("a"), Credential: builders.DefaultSecret, LastTransitionTime: at(testTime),
	}
}

func TestEndpointStatus(t *testing.T) {
	t.Parallel()
	earlier := testTime.Add(-time.Hour)
	refused := failedSnapshot(probe.StateUnhealthy, probe.StepReachable, probe.ReasonConnectionRefused, "a: refused")
	suspect := failedSnapshot(probe.StateSuspect, probe.StepReachable, probe.ReasonConnectionRefused, "a: refused")

	tests := map[string]struct {
		builder  *builders.NixBuilderWrapper
		old      func(*v1alpha1.EndpointStatus) // nil: no status before
		snapshot probe.Snapshot
		want     func(*v1alpha1.EndpointStatus) // changes healthyStatus
	}{
		"healthy for the first time": {
			builder: one(), snapshot: healthySnapshot(), want: func(*v1alpha1.EndpointStatus) {},
		},
		"healthy as before": {
			builder: one(), snapshot: healthySnapshot(),
			old:  func(s *v1alpha1.EndpointStatus) { s.LastTransitionTime = at(earlier) },
			want: func(s *v1alpha1.EndpointStatus) { s.LastTransitionTime = at(earlier) },
		},
		"refuted for a declared system": {
			builder: one().Systems("x86_64-linux", "aarch64-linux"), snapshot: refutedSnapshot("a: no", "aarch64-linux"),
			want: func(s *v1alpha1.EndpointStatus) {
				s.FailedCondition, s.Reason, s.Message = v1alpha1.ConditionSystemsVerified, "SystemsRefuted", "a: no"
				s.Systems, s.RefutedSystems = []string{"x86_64-linux"}, []string{"aarch64-linux"}
			},
		},
		"refuted for a discovered system": {
			builder: one(), snapshot: refutedSnapshot("a: no", "x86_64-linux"),
			want: func(s *v1alpha1.EndpointStatus) {
				s.FailedCondition, s.Reason, s.Message = v1alpha1.ConditionSystemsVerified, "SystemsRefuted", "a: no"
				s.Systems, s.RefutedSystems = []string{}, []string{"x86_64-linux"}
			},
		},
		"refuted for a declared feature": {
			builder: one().Features("kvm", "benchmark"), snapshot: featurelessSnapshot("a: no", "kvm"),
			want: func(s *v1alpha1.EndpointStatus) {
				s.FailedCondition, s.Reason, s.Message = v1alpha1.ConditionSystemsVerified, "FeaturesRefuted", "a: no"
				s.Features, s.RefutedFeatures = []string{"benchmark"}, []string{"kvm"}
			},
		},
		"refuted for a discovered feature": {
			builder: one(), snapshot: featurelessSnapshot("a: no", "kvm"),
			want: func(s *v1alpha1.EndpointStatus) {
				s.FailedCondition, s.Reason, s.Message = v1alpha1.ConditionSystemsVerified, "FeaturesRefuted", "a: no"
				s.Features, s.RefutedFeatures = []string{"big-parallel"}, []string{"kvm"}
			},
		},
		"with a clock that is off": {
			builder: one(), snapshot: skewedSnapshot(healthySnapshot()),
			want: func(s *v1alpha1.EndpointStatus) {
				s.FailedCondition, s.Reason, s.Message = v1alpha1.ConditionMachineFit, "ClockSkewed", skewedMessage
			},
		},
		"cordoned": {
			builder: one().Cordon("new disk", testTime.Add(time.Hour)), snapshot: healthySnapshot(),
			want: func(s *v1alpha1.EndpointStatus) { s.Cordon = builders.MakeCordon("new disk", testTime.Add(time.Hour)) },
		},
		"its cordon is over": {
			builder: one().Cordon("new disk", testTime), snapshot: healthySnapshot(),
			old:  func(s *v1alpha1.EndpointStatus) { s.Cordon = builders.MakeCordon("new disk", testTime) },
			want: func(*v1alpha1.EndpointStatus) {},
		},
		"does not tell its cores any more": {
			builder: one(), snapshot: silentSnapshot(),
			old:  func(s *v1alpha1.EndpointStatus) { s.Cores = 16 },
			want: func(s *v1alpha1.EndpointStatus) { s.Cores = 16 },
		},
		"healthy again": {
			builder: one(), snapshot: healthySnapshot(),
			old: func(s *v1alpha1.EndpointStatus) {
				s.State, s.LastTransitionTime, s.LastHealthyTime = v1alpha1.EndpointUnhealthy, at(earlier), at(earlier)
			},
			want: func(*v1alpha1.EndpointStatus) {},
		},
		"ceases to be healthy": {
			builder: one(), snapshot: suspect, old: func(s *v1alpha1.EndpointStatus) { s.LastTransitionTime = at(earlier) },
			want: func(s *v1alpha1.EndpointStatus) {
				s.State, s.FailedCondition = v1alpha1.EndpointSuspect, v1alpha1.ConditionReachable
				s.Reason, s.Message = "ConnectionRefused", "a: refused"
				s.LastHealthyTime = at(testTime.Add(-time.Minute))
			},
		},
		"stays unhealthy": {
			builder: one(), snapshot: refused,
			old: func(s *v1alpha1.EndpointStatus) {
				s.State, s.LastTransitionTime, s.LastHealthyTime = v1alpha1.EndpointUnhealthy, at(earlier), at(earlier)
			},
			want: func(s *v1alpha1.EndpointStatus) {
				s.State, s.FailedCondition = v1alpha1.EndpointUnhealthy, v1alpha1.ConditionReachable
				s.Reason, s.Message = "ConnectionRefused", "a: refused"
				s.LastTransitionTime, s.LastHealthyTime = at(earlier), at(earlier)
			},
		},
		"forgotten by the prober": {
			builder: one(), snapshot: newSnapshot(), old: func(s *v1alpha1.EndpointStatus) { s.LastTransitionTime = at(earlier) },
			want: func(s *v1alpha1.EndpointStatus) {
				s.State, s.Reason, s.Message, s.LastHealthyTime = v1alpha1.EndpointUnknown, "NotProbed", "not probed yet", at(testTime)
			},
		},
		"another machine": {
			builder: one(), snapshot: newSnapshot(),
			old: func(s *v1alpha1.EndpointStatus) { s.Address = "old.example.com:22" },
			want: func(s *v1alpha1.EndpointStatus) {
				*s = v1alpha1.EndpointStatus{
					Name: "a", Address: "a.example.com:22", State: v1alpha1.EndpointUnknown,
					Reason: "NotProbed", Message: "not probed yet", LastTransitionTime: at(testTime),
				}
			},
		},
		"another machine, held to the pin": {
			builder: one().TrustOnFirstUse(), snapshot: newSnapshot(),
			old: func(s *v1alpha1.EndpointStatus) { s.Address = "old.example.com:22" },
			want: func(s *v1alpha1.EndpointStatus) {
				*s = v1alpha1.EndpointStatus{
					Name: "a", Address: "a.example.com:22", State: v1alpha1.EndpointUnknown,
					Reason: "NotProbed", Message: "not probed yet",
					HostKey: builders.HostKey("a"), LastTransitionTime: at(testTime),
				}
			},
		},
		"healthy with a doubt": {
			builder: one(), snapshot: doubtfulSnapshot(probe.StepSystemsVerified, probe.ReasonFeaturesNotConfirmed, "a: no kvm"),
			want: func(s *v1alpha1.EndpointStatus) {
				s.FailedCondition, s.Reason, s.Message = v1alpha1.ConditionSystemsVerified, "FeaturesNotConfirmed", "a: no kvm"
			},
		},
		"the spec goes before what was discovered": {
			builder: one().Systems("i686-linux", "aarch64-linux").Features("benchmark").MaxJobs(9), snapshot: healthySnapshot(),
			want: func(s *v1alpha1.EndpointStatus) {
				s.Systems, s.Features, s.MaxJobs = []string{"i686-linux", "aarch64-linux"}, []string{"benchmark"}, 9
			},
		},
		"the endpoint goes before the spec": {
			builder:  one().MaxJobs(9).Change(func(b *v1alpha1.NixBuilder) { b.Spec.Endpoints[0].MaxJobs = 2 }),
			snapshot: healthySnapshot(),
			want:     func(s *v1alpha1.EndpointStatus) { s.MaxJobs = 2 },
		},
		"without discovery absent means none": {
			builder: one().Systems("x86_64-linux").Change(func(b *v1alpha1.NixBuilder) { b.Spec.Discovery = v1alpha1.DiscoveryDisabled }),
			old:     func(*v1alpha1.EndpointStatus) {}, snapshot: healthySnapshot(),
			want: func(s *v1alpha1.EndpointStatus) { s.Features, s.MaxJobs = nil, 1 },
		},
		"a builder with 0 jobs": {
			builder: one(),
			snapshot: func() probe.Snapshot {
				s := healthySnapshot()
				s.Result.Facts.MaxJobs = 0
				return s
			}(),
			want: func(s *v1alpha1.EndpointStatus) { s.MaxJobs = 1 },
		},
		"a builder that takes no builds of its own any more": {
			builder: one(), old: func(*v1alpha1.EndpointStatus) {},
			snapshot: func() probe.Snapshot {
				s := healthySnapshot()
				s.Result.Facts.MaxJobs, s.Result.Facts.Features = 0, []string{}
				return s
			}(),
			want: func(s *v1alpha1.EndpointStatus) { s.MaxJobs, s.Features = 1, nil },
		},
		"a builder that ceases to tell": {
			builder: one(), old: func(*v1alpha1.EndpointStatus) {},
			snapshot: func() probe.Snapshot {
				s := healthySnapshot()
				s.Result.Facts.MaxJobs, s.Result.Facts.Features, s.Result.Facts.Systems = 0, nil, nil
				return s
			}(),
			want: func(*v1alpha1.EndpointStatus) {},
		},
		"a builder that boasts": {
			builder: one(),
			snapshot: func() probe.Snapshot {
				s := healthySnapshot()
				s.Message = strings.Repeat("ü", 2000)
				s.Result.Facts.MaxJobs = 1 << 40
				s.Result.Facts.NixVersion = strings.Repeat("9", 100)
				s.Result.Facts.Systems = []string{"x86_64-linux", "no system", strings.Repeat("x", 100) + "-linux"}
				s.Result.Facts.Features = []string{"kvm,benchmark", "big-parallel", "kvm", "kvm"}
				return s
			}(),
			want: func(s *v1alpha1.EndpointStatus) {
				s.MaxJobs, s.NixVersion = 1024, strings.Repeat("9", 61)+"…"
				s.Message = strings.Repeat("ü", 510) + "…"
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := tc.builder.Obj()
			if tc.old != nil {
				old := healthyStatus()
				tc.old(&old)
				builder.Status.Endpoints = []v1alpha1.EndpointStatus{old}
			}
			want := healthyStatus()
			tc.want(&want)
			s := newScope(builder, snapshots(tc.snapshot))
			got := s.endpointStatus(&builder.Spec.Endpoints[0])
			// What a machine told earlier stays; most failed snapshots here carry no facts.
			if tc.old == nil && tc.snapshot.Result.Facts.NixVersion == "" {
				t.Fatal("a case without facts needs an earlier status")
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			if !utf8.ValidString(got.Message) || len(got.Message) > v1alpha1.MaxMessageLength {
				t.Errorf("message of %d bytes", len(got.Message))
			}
		})
	}
}

func TestStatusIsAFixedPoint(t *testing.T) {
	t.Parallel()
	later := testTime.Add(17 * time.Minute)
	for name, snapshot := range map[string]probe.Snapshot{
		"healthy":   healthySnapshot(),
		"doubtful":  doubtfulSnapshot(probe.StepSystemsVerified, probe.ReasonDiscoveryUnavailable, "a: silent"),
		"suspect":   failedSnapshot(probe.StateSuspect, probe.StepReachable, probe.ReasonConnectTimeout, "a: no answer"),
		"unhealthy": failedSnapshot(probe.StateUnhealthy, probe.StepTrusted, probe.ReasonUserNotTrusted, "a: not trusted"),
		"refuted":   refutedSnapshot("a: no", "i686-linux", "aarch64-linux"),
		"featless":  featurelessSnapshot("a: no", "kvm"),
		"new":       newSnapshot(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := one().Obj()
			builder.Status = newScope(builder, snapshots(snapshot)).status()
			again := newScope(builder, snapshots(snapshot))
			again.now = later
			if diff := cmp.Diff(builder.Status, again.status()); diff != "" {
				t.Errorf("a second pass changes the status (-first +second):\n%s", diff)
			}
			if told := again.transitions(&builder.Status); len(told) > 0 {
				t.Errorf("events without a transition: %v", told)
			}
		})
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	newer, other := healthySnapshot(), healthySnapshot()
	newer.Result.Facts.NixVersion = "2.34.1"
	other.Result.Facts.Systems = []string{"x86_64-linux", "i686-linux"}
	builder := three().Change(func(b *v1alpha1.NixBuilder) {
		b.Spec.Endpoints[2].Cordon = builders.MakeCordon("new disk", time.Time{})
	}).Obj()
	status := newScope(builder, snapshots(newer, other, failedSnapshot(probe.StateUnhealthy, probe.StepReachable, "X", "c: x"))).status()

	got := []any{status.ObservedGeneration, status.TotalEndpoints, status.HealthyEndpoints, status.Healthy, status.Cordoned, status.Systems, status.Jobs, status.Nix}
	want := []any{int64(7), int32(3), int32(2), "2/3", "1/3", "i686-linux,x86_64-linux", int32(8), "2.26.3,2.34.1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
}

func TestDiscoveredIsBounded(t *testing.T) {
	t.Parallel()
	var told []string
	for i := range 100 {
		told = append(told, fmt.Sprintf("%03d%s", i, strings.Repeat("x", v1alpha1.MaxTextLength-3)))
	}
	got := discovered(told, featurePattern, v1alpha1.MaxStatusFeatures, nil)
	if want := maxDiscovered / v1alpha1.MaxTextLength; len(got) != want {
		t.Errorf("%d of the longest features are kept, want %d", len(got), want)
	}
}

func TestDisplay(t *testing.T) {
	t.Parallel()
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("system%02d-linux", i))
	}
	tests := map[string]struct {
		items []string
		want  string
	}{
		"nothing":          {want: ""},
		"sorted, no twins": {items: []string{"b", "a", "b"}, want: "a,b"},
		"too many":         {items: many, want: strings.Join(many[:13], ",") + ",+27"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := display(tc.items); got != tc.want {
				t.Errorf("display() = %q, want %q", got, tc.want)
			}
		})
	}
}
