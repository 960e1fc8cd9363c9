// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

const (
	isTrue    = metav1.ConditionTrue
	isFalse   = metav1.ConditionFalse
	isUnknown = metav1.ConditionUnknown
)

// three is a builder with endpoints a, b and c.
func three() *builders.NixBuilderWrapper {
	return builders.MakeNixBuilder("three").Generation(7).
		Endpoint("a", "a.example.com").Endpoint("b", "b.example.com").Endpoint("c", "c.example.com")
}

func one() *builders.NixBuilderWrapper {
	return builders.MakeNixBuilder("one").Generation(7).Endpoint("a", "a.example.com")
}

func snapshots(list ...probe.Snapshot) map[string]probe.Snapshot {
	out := map[string]probe.Snapshot{}
	for i, snapshot := range list {
		out[string(rune('a'+i))] = snapshot
	}
	return out
}

// allTrue are the conditions of a builder with nothing wrong.
func allTrue() map[string]condition {
	return map[string]condition{
		v1alpha1.ConditionAccepted:         {isTrue, "Accepted", "accepted"},
		v1alpha1.ConditionCredentialsValid: {isTrue, "CredentialsUsable", "usable"},
		v1alpha1.ConditionReachable:        {isTrue, "Connected", "an SSH server answers"},
		v1alpha1.ConditionHostKeyVerified:  {isTrue, "HostKeyMatches", "the host key is the expected one"},
		v1alpha1.ConditionAuthenticated:    {isTrue, "LoggedIn", "logged in as nix"},
		v1alpha1.ConditionNixAvailable:     {isTrue, "NixDaemonAnswers", "nix-daemon answers"},
		v1alpha1.ConditionTrusted:          {isTrue, "UserTrusted", "nix-daemon trusts nix"},
		v1alpha1.ConditionMachineFit:       {isTrue, "MachineFit", "disk, load and clock are within spec.thresholds"},
		v1alpha1.ConditionSystemsVerified:  {isTrue, "SystemsVerified", "the declared systems and features are those of the machine"},
		v1alpha1.ConditionReady:            {isTrue, "AllHealthy", "every endpoint is healthy"},
	}
}

// failing are the conditions where a step fails or is in doubt, those after it
// were not reached for the same or other endpoints, and Ready follows.
func failing(step probe.Step, failure, later, ready condition) map[string]condition {
	out := map[string]condition{v1alpha1.ConditionReady: ready}
	for i, next := range probe.Steps()[slices.Index(probe.Steps(), step):] {
		out[string(next)] = later
		if i == 0 {
			out[string(next)] = failure
		}
	}
	return out
}

// with adds a condition to others.
func with(conditions map[string]condition, conditionType string, c condition) map[string]condition {
	conditions[conditionType] = c
	return conditions
}

func TestConditions(t *testing.T) {
	t.Parallel()
	refused := failedSnapshot(probe.StateUnhealthy, probe.StepReachable, probe.ReasonConnectionRefused, "b (b.example.com:22): connection refused")
	untrusted := failedSnapshot(probe.StateUnhealthy, probe.StepTrusted, probe.ReasonUserNotTrusted, "a (a.example.com:22): not trusted")
	suspect := failedSnapshot(probe.StateSuspect, probe.StepReachable, probe.ReasonConnectTimeout, "a (a.example.com:22): no answer")
	firstFailure := suspect
	firstFailure.LastHealthy = time.Time{}
	darwin := healthySnapshot()
	darwin.Result.Facts.Systems = []string{"aarch64-darwin"}
	silent := healthySnapshot()
	silent.Result.Facts.Systems = nil

	tests := map[string]struct {
		builder   *builders.NixBuilderWrapper
		snapshots map[string]probe.Snapshot
		change    func(*scope)
		// want holds what differs from all conditions being True.
		want map[string]condition
	}{
		"nothing wrong": {
			builder: three(), snapshots: snapshots(healthySnapshot(), healthySnapshot(), healthySnapshot()),
		},
		"not probed yet": {
			builder: one(), snapshots: snapshots(newSnapshot()),
			want: failing(probe.StepReachable,
				condition{isUnknown, "NotProbed", "a: not probed yet"},
				condition{isUnknown, "NotProbed", "a: not probed yet"},
				condition{isUnknown, "NotProbed", "a: not probed yet"}),
		},
		"one of three is away": {
			builder: three(), snapshots: snapshots(healthySnapshot(), refused, healthySnapshot()),
			want: failing(probe.StepReachable,
				condition{isFalse, "ConnectionRefused", "b (b.example.com:22): connection refused (1 of 3 endpoints)"},
				condition{isUnknown, "NotReached", "b: not checked, because an earlier condition is not True (1 of 3 endpoints)"},
				condition{isTrue, "Degraded", "b (b.example.com:22): connection refused (1 of 3 endpoints)"}),
		},
		"a failure goes before a doubt, the first endpoint first": {
			builder: three(), snapshots: snapshots(untrusted, refused, untrusted),
			want: with(with(with(failing(probe.StepReachable,
				condition{isFalse, "ConnectionRefused", "b (b.example.com:22): connection refused (1 of 3 endpoints)"},
				condition{isUnknown, "NotReached", "b: not checked, because an earlier condition is not True (1 of 3 endpoints)"},
				condition{isFalse, "UserNotTrusted", "a (a.example.com:22): not trusted"}),
				v1alpha1.ConditionTrusted, condition{isFalse, "UserNotTrusted", "a (a.example.com:22): not trusted (2 of 3 endpoints)"}),
				v1alpha1.ConditionMachineFit, condition{isUnknown, "NotReached", "a: not checked, because an earlier condition is not True (3 of 3 endpoints)"}),
				v1alpha1.ConditionSystemsVerified, condition{isUnknown, "NotReached", "a: not checked, because an earlier condition is not True (3 of 3 endpoints)"}),
		},
		"a declared system is refuted everywhere": {
			builder: one().Systems("x86_64-linux", "aarch64-linux"), snapshots: snapshots(refutedSnapshot("a (a.example.com:22): no", "aarch64-linux")),
			want: map[string]condition{
				v1alpha1.ConditionSystemsVerified: {isFalse, "SystemsRefuted", "a (a.example.com:22): no"},
				v1alpha1.ConditionReady:           {isFalse, "SystemsRefuted", "no endpoint for aarch64-linux: a (a.example.com:22): no"},
			},
		},
		"a discovered system is refuted": {
			builder: one(), snapshots: snapshots(bothSystems("a: no", "aarch64-linux")),
			want: map[string]condition{v1alpha1.ConditionSystemsVerified: {isFalse, "SystemsRefuted", "a: no"}},
		},
		"a declared system is refuted at one endpoint": {
			builder:   three().Systems("x86_64-linux", "aarch64-linux"),
			snapshots: snapshots(healthySnapshot(), refutedSnapshot("b (b.example.com:22): no", "aarch64-linux"), healthySnapshot()),
			want: map[string]condition{
				v1alpha1.ConditionSystemsVerified: {isFalse, "SystemsRefuted", "b (b.example.com:22): no (1 of 3 endpoints)"},
			},
		},
		"a suspect endpoint is still used": {
			builder: one().Systems("x86_64-linux"), snapshots: snapshots(suspect),
			want: failing(probe.StepReachable,
				condition{isFalse, "ConnectTimeout", "a (a.example.com:22): no answer"},
				condition{isUnknown, "NotReached", "a: not checked, because an earlier condition is not True"},
				condition{isTrue, "Degraded", "a (a.example.com:22): no answer"}),
		},
		"an endpoint that was never healthy is not used": {
			builder: one().Systems("x86_64-linux"), snapshots: snapshots(firstFailure),
			want: failing(probe.StepReachable,
				condition{isFalse, "ConnectTimeout", "a (a.example.com:22): no answer"},
				condition{isUnknown, "NotReached", "a: not checked, because an earlier condition is not True"},
				condition{isFalse, "ConnectTimeout", "no endpoint for x86_64-linux: a (a.example.com:22): no answer"}),
		},
		"what cannot be verified blocks nothing": {
			builder: one(), snapshots: snapshots(doubtfulSnapshot(probe.StepSystemsVerified, probe.ReasonFeaturesNotConfirmed, "a (a.example.com:22): no kvm")),
			want: map[string]condition{
				v1alpha1.ConditionSystemsVerified: {isUnknown, "FeaturesNotConfirmed", "a (a.example.com:22): no kvm"},
				v1alpha1.ConditionReady:           {isTrue, "AllHealthy", "every endpoint is healthy, with a doubt: a (a.example.com:22): no kvm"},
			},
		},
		"a doubt that names nothing to correct": {
			builder: one(), snapshots: snapshots(doubtfulSnapshot(probe.StepSystemsVerified, probe.ReasonDiscoveryUnavailable, "a (a.example.com:22): silent")),
			want: map[string]condition{
				v1alpha1.ConditionSystemsVerified: {isUnknown, "DiscoveryUnavailable", "a (a.example.com:22): silent"},
			},
		},
		"a doubt about one that is cordoned": {
			builder: three().Change(func(b *v1alpha1.NixBuilder) {
				b.Spec.Endpoints[0].Cordon = builders.MakeCordon("new disk", time.Time{})
			}),
			snapshots: snapshots(doubtfulSnapshot(probe.StepSystemsVerified, probe.ReasonSystemsNotConfirmed, "a: no"), healthySnapshot(), healthySnapshot()),
			want:      map[string]condition{v1alpha1.ConditionCordoned: {isTrue, "Cordoned", "a: new disk"}},
		},
		"a system without an endpoint": {
			builder: three(), snapshots: snapshots(darwin, refused, darwin),
			change: func(s *scope) {
				s.builder.Status.Endpoints = []v1alpha1.EndpointStatus{{
					Name: "b", Address: "b.example.com:22", Systems: []string{"x86_64-linux"},
				}}
			},
			want: failing(probe.StepReachable,
				condition{isFalse, "ConnectionRefused", "b (b.example.com:22): connection refused (1 of 3 endpoints)"},
				condition{isUnknown, "NotReached", "b: not checked, because an earlier condition is not True (1 of 3 endpoints)"},
				condition{isFalse, "ConnectionRefused", "no endpoint for x86_64-linux: b (b.example.com:22): connection refused"}),
		},
		"usable for unknown systems": {
			builder: one(), snapshots: snapshots(silent),
			want: map[string]condition{
				v1alpha1.ConditionReady: {isFalse, "SystemsUnknown", "the machines can be used, but do not tell for which systems: list them in spec.systems"},
			},
		},
		"a mandatory feature is lacking": {
			builder: one().MandatoryFeatures("kvm"), snapshots: snapshots(featurelessSnapshot("a (a.example.com:22): no kvm", "kvm")),
			want: map[string]condition{
				v1alpha1.ConditionSystemsVerified: {isFalse, "FeaturesRefuted", "a (a.example.com:22): no kvm"},
				v1alpha1.ConditionReady:           {isFalse, "FeaturesRefuted", "no endpoint for x86_64-linux: a (a.example.com:22): no kvm"},
			},
		},
		"a feature is lacking": {
			builder: one().Features("kvm"), snapshots: snapshots(featurelessSnapshot("a (a.example.com:22): no kvm", "kvm")),
			want: map[string]condition{v1alpha1.ConditionSystemsVerified: {isFalse, "FeaturesRefuted", "a (a.example.com:22): no kvm"}},
		},
		"a clock that is off": {
			builder: one(), snapshots: snapshots(skewedSnapshot(healthySnapshot())),
			want: map[string]condition{v1alpha1.ConditionMachineFit: {isFalse, "ClockSkewed", skewedMessage}},
		},
		"a cordoned endpoint does not count": {
			builder: three().Change(func(b *v1alpha1.NixBuilder) {
				b.Spec.Endpoints[1].Cordon = builders.MakeCordon("new disk", testTime.Add(time.Hour))
			}),
			snapshots: snapshots(healthySnapshot(), refused, healthySnapshot()),
			want: map[string]condition{
				v1alpha1.ConditionCordoned: {isTrue, "Cordoned", "b: new disk (until 2026-01-02T04:04:05Z)"},
			},
		},
		"a cordon that is over": {
			builder: three().Cordon("moving house", testTime), snapshots: snapshots(healthySnapshot(), healthySnapshot(), healthySnapshot()),
		},
		"every endpoint cordoned": {
			builder: one().Cordon("moving house", time.Time{}), snapshots: snapshots(healthySnapshot()),
			want: with(failing(probe.StepReachable,
				condition{isUnknown, "Cordoned", "every endpoint is cordoned"},
				condition{isUnknown, "Cordoned", "every endpoint is cordoned"},
				condition{isFalse, "Cordoned", "every endpoint is cordoned: moving house"}),
				v1alpha1.ConditionCordoned, condition{isTrue, "Cordoned", "every endpoint: moving house"}),
		},
		"not accepted": {
			builder: one(),
			change: func(s *scope) {
				s.accepted = fails(v1alpha1.ReasonDuplicateEndpoint, "same machine")
				s.credentialsValid = unknown(v1alpha1.ReasonNotAccepted, notAcceptedMessage)
				s.credentials = nil
			},
			want: with(with(failing(probe.StepReachable,
				condition{isUnknown, "NotAccepted", notAcceptedMessage},
				condition{isUnknown, "NotAccepted", notAcceptedMessage},
				condition{isFalse, "DuplicateEndpoint", "same machine"}),
				v1alpha1.ConditionAccepted, condition{isFalse, "DuplicateEndpoint", "same machine"}),
				v1alpha1.ConditionCredentialsValid, condition{isUnknown, "NotAccepted", notAcceptedMessage}),
		},
		"no usable key": {
			builder: one(),
			change: func(s *scope) {
				s.credentialsValid = fails(v1alpha1.ReasonSecretNotFound, "no Secret")
				s.credentials = nil
			},
			want: with(failing(probe.StepReachable,
				condition{isUnknown, "NoCredential", noCredentialMessage},
				condition{isUnknown, "NoCredential", noCredentialMessage},
				condition{isFalse, "SecretNotFound", "no Secret"}),
				v1alpha1.ConditionCredentialsValid, condition{isFalse, "SecretNotFound", "no Secret"}),
		},
		"one Secret of two cannot be used": {
			builder: one(), snapshots: snapshots(healthySnapshot()),
			change: func(s *scope) { s.credentialsValid = fails(v1alpha1.ReasonSecretNotFound, "no Secret") },
			want: map[string]condition{
				v1alpha1.ConditionCredentialsValid: {isFalse, "SecretNotFound", "no Secret"},
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScope(tc.builder.Obj(), tc.snapshots)
			if tc.change != nil {
				tc.change(s)
			}
			want := allTrue()
			for conditionType, c := range tc.want {
				want[conditionType] = c
			}
			status := s.status()
			if diff := cmp.Diff(want, conditionsOf(status.Conditions)); diff != "" {
				t.Errorf("conditions (-want +got):\n%s", diff)
			}
			for _, c := range status.Conditions {
				if c.ObservedGeneration != 7 || !c.LastTransitionTime.Time.Equal(testTime) {
					t.Errorf("condition %s: generation %d, transition %s", c.Type, c.ObservedGeneration, c.LastTransitionTime)
				}
			}
		})
	}
}

// bothSystems is a machine that says it builds for two systems.
func bothSystems(message, refuted string) probe.Snapshot {
	snapshot := refutedSnapshot(message, refuted)
	snapshot.Result.Facts.Systems = []string{"aarch64-linux", "x86_64-linux"}
	return snapshot
}

func TestConditionsKeepTheirTime(t *testing.T) {
	t.Parallel()
	earlier := metav1.NewTime(testTime.Add(-time.Hour))
	builder := one().Condition(v1alpha1.ConditionReady, isTrue, "Degraded").Condition(v1alpha1.ConditionTrusted, isFalse, "UserNotTrusted").
		Change(func(b *v1alpha1.NixBuilder) {
			for i := range b.Status.Conditions {
				b.Status.Conditions[i].LastTransitionTime = earlier
			}
		}).Obj()
	status := newScope(builder, snapshots(healthySnapshot())).status()
	if got := status.Condition(v1alpha1.ConditionReady).LastTransitionTime; !got.Equal(&earlier) {
		t.Errorf("Ready stayed True, but its transition moved to %s", got)
	}
	if got := status.Condition(v1alpha1.ConditionTrusted).LastTransitionTime; !got.Time.Equal(testTime) {
		t.Errorf("Trusted became True, but its transition is at %s", got)
	}
}

func TestConditionOrder(t *testing.T) {
	t.Parallel()
	var got []string
	for _, c := range newScope(one().Obj(), snapshots(healthySnapshot())).status().Conditions {
		got = append(got, c.Type)
	}
	want := []string{
		"Accepted", "CredentialsValid", "Reachable", "HostKeyVerified", "Authenticated",
		"NixAvailable", "Trusted", "MachineFit", "SystemsVerified", "Ready",
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}
