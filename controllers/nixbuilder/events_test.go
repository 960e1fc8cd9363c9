// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
		"cordoned": {
			after: status{Conditions: conditions("Cordoned", "True", "Cordoned")}, want: []string{"Normal Cordoned"},
		},
		"uncordoned": {
			before: status{Conditions: conditions("Cordoned", "True", "Cordoned")}, want: []string{"Normal Uncordoned"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, transition := range transitions(&tc.before, &tc.after, tc.pins) {
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
