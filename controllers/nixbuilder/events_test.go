// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

func TestTransitions(t *testing.T) {
	t.Parallel()
	type status = v1alpha1.NixBuilderStatus
	conditions := func(list ...string) []metav1.Condition { // type, status, reason, …
		var out []metav1.Condition
		for i := 0; i < len(list); i += 3 {
			out = append(out, metav1.Condition{
				Type: list[i], Status: metav1.ConditionStatus(list[i+1]), Reason: list[i+2], Message: "message of " + list[i],
			})
		}
		return out
	}
	endpoint := func(state v1alpha1.EndpointState, failed, reason string) []v1alpha1.EndpointStatus {
		return []v1alpha1.EndpointStatus{{Name: "a", State: state, FailedCondition: failed, Reason: reason, Message: "a (x:22): message", HostKey: builders.HostKey("a")}}
	}
	healthy := endpoint(v1alpha1.EndpointHealthy, "", "AllStepsPassed")
	suspect := endpoint(v1alpha1.EndpointSuspect, "Reachable", "ConnectionRefused")
	unhealthy := endpoint(v1alpha1.EndpointUnhealthy, "Reachable", "ConnectionRefused")
	timeout := endpoint(v1alpha1.EndpointUnhealthy, "Reachable", "ConnectTimeout")
	refuted := endpoint(v1alpha1.EndpointHealthy, "SystemsVerified", "SystemsRefuted")
	refuted[0].RefutedSystems = []string{"aarch64-linux"}
	featureless := endpoint(v1alpha1.EndpointHealthy, "SystemsVerified", "FeaturesRefuted")
	featureless[0].RefutedFeatures = []string{"kvm"}
	skewed := endpoint(v1alpha1.EndpointHealthy, "MachineFit", "ClockSkewed")
	doubted := endpoint(v1alpha1.EndpointHealthy, "SystemsVerified", "FeaturesNotConfirmed")
	changed := endpoint(v1alpha1.EndpointUnhealthy, "HostKeyVerified", "HostKeyChanged")

	tests := map[string]struct {
		before, after status
		pins          map[string]string
		want          []string
	}{
		"first pass": {
			after: status{Conditions: conditions("Accepted", "True", "Accepted", "CredentialsValid", "True", "CredentialsUsable", "Ready", "Unknown", "NotProbed")},
		},
		"healthy for the first time": {
			before: status{Conditions: conditions("Ready", "Unknown", "NotProbed")},
			after:  status{Conditions: conditions("Ready", "True", "AllHealthy"), Endpoints: healthy},
			want:   []string{"Normal Healthy a", "Normal AllHealthy"},
		},
		"trusted on first use": {
			after: status{Endpoints: healthy}, pins: map[string]string{"a": builders.HostKey("a")},
			want: []string{"Normal HostKeyPinned a", "Normal Healthy a"},
		},
		"refused at the first pass": {
			after: status{Conditions: conditions("Accepted", "False", "DuplicateEndpoint", "Ready", "False", "DuplicateEndpoint")},
			want:  []string{"Warning DuplicateEndpoint"},
		},
		"refuted for a system": {
			before: status{Conditions: conditions("Ready", "True", "AllHealthy"), Endpoints: healthy},
			after:  status{Conditions: conditions("Ready", "False", "SystemsRefuted"), Endpoints: refuted},
			want:   []string{"Warning SystemsRefuted a"},
		},
		"refuted from the first": {
			after: status{Endpoints: featureless}, want: []string{"Normal Healthy a", "Warning FeaturesRefuted a"},
		},
		"its clock is off from the first": {
			after: status{Endpoints: skewed}, want: []string{"Normal Healthy a", "Warning ClockSkewed a"},
		},
		"its clock is off": {
			before: status{Endpoints: healthy}, after: status{Endpoints: skewed}, want: []string{"Warning ClockSkewed a"},
		},
		"its clock is still off": {before: status{Endpoints: skewed}, after: status{Endpoints: skewed}},
		"its clock is right again": {
			before: status{Endpoints: skewed}, after: status{Endpoints: healthy}, want: []string{"Normal MachineFit a"},
		},
		"its features are doubted": {
			before: status{Endpoints: healthy}, after: status{Endpoints: doubted}, want: []string{"Warning FeaturesNotConfirmed a"},
		},
		"its features are doubted no more": {
			before: status{Endpoints: doubted}, after: status{Endpoints: healthy}, want: []string{"Normal SystemsVerified a"},
		},
		"fails, with a clock that is off": {
			before: status{Endpoints: skewed}, after: status{Endpoints: unhealthy}, want: []string{"Warning ConnectionRefused a"},
		},
		"still refuted": {before: status{Endpoints: refuted}, after: status{Endpoints: refuted}},
		"refuted no more": {
			before: status{Conditions: conditions("Ready", "True", "AllHealthy"), Endpoints: refuted},
			after:  status{Conditions: conditions("Ready", "True", "AllHealthy"), Endpoints: healthy},
			want:   []string{"Normal SystemsVerified a"},
		},
		"accepted later": {
			before: status{Conditions: conditions("Accepted", "False", "DuplicateEndpoint")},
			after:  status{Conditions: conditions("Accepted", "True", "Accepted")},
			want:   []string{"Normal Accepted"},
		},
		"another trouble with credentials": {
			before: status{Conditions: conditions("CredentialsValid", "False", "SecretNotFound")},
			after:  status{Conditions: conditions("CredentialsValid", "False", "SecretNotLabelled")},
			want:   []string{"Warning SecretNotLabelled"},
		},
		"no key any more": {
			before: status{Endpoints: healthy},
			after: status{
				Conditions: conditions("CredentialsValid", "False", "SecretNotFound", "Ready", "False", "SecretNotFound"),
				Endpoints:  endpoint(v1alpha1.EndpointUnhealthy, "CredentialsValid", "SecretNotFound"),
			},
			want: []string{"Warning SecretNotFound"},
		},
		"first failure": {
			before: status{Conditions: conditions("Ready", "True", "AllHealthy"), Endpoints: healthy},
			after:  status{Conditions: conditions("Ready", "True", "Degraded"), Endpoints: suspect},
			want:   []string{"Warning ConnectionRefused a"},
		},
		"threshold": {
			before: status{Conditions: conditions("Ready", "True", "Degraded"), Endpoints: suspect},
			after:  status{Conditions: conditions("Ready", "False", "ConnectionRefused"), Endpoints: unhealthy},
			want:   []string{"Warning ConnectionRefused a"},
		},
		"fails in another way at the same step": {before: status{Endpoints: unhealthy}, after: status{Endpoints: timeout}},
		"fails in another way, and the builder with it": {
			before: status{Conditions: conditions("Ready", "False", "ConnectionRefused"), Endpoints: unhealthy},
			after:  status{Conditions: conditions("Ready", "False", "ConnectTimeout"), Endpoints: timeout},
		},
		"fails at another step": {
			before: status{Endpoints: unhealthy}, after: status{Endpoints: changed}, want: []string{"Warning HostKeyChanged a"},
		},
		"recovered": {
			before: status{Conditions: conditions("Ready", "False", "ConnectionRefused"), Endpoints: unhealthy},
			after:  status{Conditions: conditions("Ready", "True", "AllHealthy"), Endpoints: healthy},
			want:   []string{"Normal Healthy a", "Normal AllHealthy"},
		},
		"another host key": {
			before: status{Endpoints: healthy},
			after:  status{Endpoints: []v1alpha1.EndpointStatus{{Name: "a", State: v1alpha1.EndpointHealthy, HostKey: builders.HostKey("b")}}},
			pins:   map[string]string{"a": builders.HostKey("b")},
			want:   []string{"Normal HostKeyReplaced a"},
		},
		"refuted for a feature": {
			before: status{Endpoints: healthy}, after: status{Endpoints: featureless}, want: []string{"Warning FeaturesRefuted a"},
		},
		"refuted for a system besides": {
			before: status{Endpoints: featureless}, after: status{Endpoints: refuted}, want: []string{"Warning SystemsRefuted a"},
		},
		"offers the feature again": {
			before: status{Endpoints: featureless}, after: status{Endpoints: healthy}, want: []string{"Normal SystemsVerified a"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			builder := one().Obj()
			builder.Generation, builder.Status = 1, tc.before
			builder.Status.ObservedGeneration = 1
			for _, transition := range (&scope{builder: builder, pins: tc.pins}).transitions(&tc.after) {
				kind := "Normal"
				if transition.warning {
					kind = "Warning"
				}
				got = append(got, strings.TrimSpace(kind+" "+transition.reason+" "+transition.endpoint))
				if transition.note == "" || transition.action == "" {
					t.Errorf("event without note or action: %+v", transition)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

// Two events about one failure tell two things: that it began, and that it has
// consequences now.
func TestTransitionsTellWhatAFailureMeans(t *testing.T) {
	t.Parallel()
	entry := func(state v1alpha1.EndpointState) *v1alpha1.EndpointStatus {
		return &v1alpha1.EndpointStatus{Name: "a", State: state, Reason: "ConnectionRefused", FailedCondition: "Reachable", Message: "a (x:22): refused" + strings.Repeat(".", 2000)}
	}
	tests := map[string]struct {
		old, state v1alpha1.EndpointState
		want       string
	}{
		"first failure":           {v1alpha1.EndpointHealthy, v1alpha1.EndpointSuspect, " (still used; out of use after 3 failures in a row)"},
		"threshold":               {v1alpha1.EndpointSuspect, v1alpha1.EndpointUnhealthy, " (out of use now)"},
		"at once":                 {v1alpha1.EndpointHealthy, v1alpha1.EndpointUnhealthy, " (out of use now)"},
		"it was never in use yet": {v1alpha1.EndpointUnknown, v1alpha1.EndpointUnhealthy, "…"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := endpointTransitions(entry(tc.old), entry(tc.state), 3)
			if len(got) != 1 {
				t.Fatalf("events %+v, want one", got)
			}
			note := clip(got[0].note, maxNote)
			if !strings.HasPrefix(note, "a (x:22): refused") || !strings.HasSuffix(note, tc.want) {
				t.Errorf("note %q, want the end %q", note, tc.want)
			}
		})
	}
}

// The recorder makes a series of events that are about the same, do the same and have
// the same reason.
func TestEventsThatRecurAreCounted(t *testing.T) {
	t.Parallel()
	about := func(recurs bool, version string) any {
		recorder := &regarded{}
		builder := one().Obj()
		builder.ResourceVersion = version
		transition{recurs: recurs, endpoint: "a", reason: "Reason", action: actionProbe}.emit(recorder, builder)
		return recorder.about
	}
	if first, second := about(true, "1"), about(true, "2"); !cmp.Equal(first, second) {
		t.Errorf("events that recur are about different things: %+v, %+v", first, second)
	}
	if first, second := about(false, "1"), about(false, "2"); cmp.Equal(first, second) {
		t.Error("events that people have caused are counted as one, and only the first note is seen")
	}
}

// A machine may answer each canary in another way.
func TestRefutationsRecur(t *testing.T) {
	t.Parallel()
	entry := func(refuted ...string) *v1alpha1.EndpointStatus {
		return &v1alpha1.EndpointStatus{Name: "a", State: v1alpha1.EndpointHealthy, RefutedSystems: refuted}
	}
	s := &scope{}
	for _, got := range [][]transition{
		s.refutationTransitions(entry(), entry("aarch64-linux")),
		s.refutationTransitions(entry("aarch64-linux"), entry()),
	} {
		if len(got) != 1 || !got[0].recurs {
			t.Errorf("events %+v, want one that recurs", got)
		}
	}
}

// regarded is a recorder that keeps what the last event was about.
type regarded struct{ about runtime.Object }

func (r *regarded) Eventf(about, _ runtime.Object, _, _, _, _ string, _ ...any) {
	r.about = about.DeepCopyObject()
}

func TestEmit(t *testing.T) {
	t.Parallel()
	recorder := events.NewFakeRecorder(1)
	transition{warning: true, endpoint: "a", reason: "Reason", action: actionProbe, note: "100%s " + strings.Repeat("x", 2000)}.
		emit(recorder, one().Obj())
	got := <-recorder.Events
	if !strings.HasPrefix(got, "Warning Reason 100%s xxx") || len(got) > len("Warning Reason ")+maxNote {
		t.Errorf("event of %d bytes: %.60s", len(got), got)
	}
}
