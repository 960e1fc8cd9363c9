// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"strings"
	"testing"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// A machine that fails in turn in two ways changes the list for dispatchers with
// each of its probes.
func TestReconcileTakesItsTimeForDispatchersAlone(t *testing.T) {
	t.Parallel()
	flapping := object(one("y", down("", time.Minute)))
	s := newStage(t, object(one("x", healthy(""))), flapping)
	s.reconcile(t)
	fails := func(reason string) ctrl.Result {
		flapping.Status.Endpoints[0].Reason = reason
		if err := s.client.Update(t.Context(), flapping); err != nil {
			t.Fatal(err)
		}
		return s.reconcile(t)
	}
	for i, reason := range []string{"ConnectTimeout", "HostUnreachable", "ConnectTimeout"} {
		s.clock.SetTime(now.Add(time.Duration(i) * time.Second))
		want := leisure - time.Duration(i)*time.Second
		if got := fails(reason).RequeueAfter; got != want {
			t.Errorf("RequeueAfter = %v after %d s, want %v", got, i, want)
		}
	}
	if s.applies != 1 {
		t.Errorf("%d writes, want the first alone", s.applies)
	}

	// What clients go by does not wait, and takes the rest along.
	flapping.Spec.Cordon = &v1alpha1.Cordon{Reason: "r"}
	other := object(one("z", healthy("")))
	if err := s.client.Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	fails("SSHSilent")
	if got := s.configMap(t).Data; s.applies != 2 || !strings.Contains(got[KeyMachines], "@z.example ") || !strings.Contains(got[KeyBuilders], "SSHSilent") {
		t.Errorf("after %d writes: %q", s.applies, got)
	}

	fails("ConnectTimeout")
	s.clock.SetTime(s.clock.Now().Add(leisure))
	s.reconcile(t)
	if got := s.configMap(t).Data; s.applies != 3 || !strings.Contains(got[KeyBuilders], "ConnectTimeout") {
		t.Errorf("after %d writes and a while: %q", s.applies, got)
	}
}
