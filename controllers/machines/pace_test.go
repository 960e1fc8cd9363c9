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

	s.clock.SetTime(s.clock.Now().Add(fails("ConnectTimeout").RequeueAfter))
	s.reconcile(t)
	if got := s.configMap(t).Data; s.applies != 3 || !strings.Contains(got[KeyBuilders], "ConnectTimeout") {
		t.Errorf("after %d writes and a while: %q", s.applies, got)
	}
}

// A machine that is lost and comes back again and again changes lines of the machines
// file each time.
func TestReconcileKeepsItsPaceWhileMachinesFlap(t *testing.T) {
	t.Parallel()
	flapping := object(one("y", healthy("")))
	s := newStage(t, object(one("x", healthy(""))), flapping)
	s.reconcile(t)
	lost := false
	flap := func() ctrl.Result {
		status := &flapping.Status.Endpoints[0]
		if lost = !lost; lost {
			status.State, status.Reason, status.LastHealthyTime = v1alpha1.EndpointUnhealthy, "ConnectionRefused", ago(0)
		} else {
			status.State, status.Reason, status.LastHealthyTime = v1alpha1.EndpointHealthy, "Healthy", nil
		}
		if err := s.client.Update(t.Context(), flapping); err != nil {
			t.Fatal(err)
		}
		return s.reconcile(t)
	}
	const minutes = 3
	due := now.Add(24 * time.Hour)
	var atOnce int
	for at := time.Duration(0); at < minutes*time.Minute; at += time.Second {
		s.clock.SetTime(now.Add(at))
		var result ctrl.Result
		switch {
		case at%(3*time.Second) == 0: // ten times a minute
			result = flap()
		case !s.clock.Now().Before(due):
			result = s.reconcile(t)
		default:
			continue
		}
		if due = s.clock.Now().Add(result.RequeueAfter); result.RequeueAfter == 0 {
			due = now.Add(24 * time.Hour)
		}
		if at <= 3*time.Second && strings.Contains(s.configMap(t).Data[KeyMachines], "@y.example ") != lost {
			atOnce++
		}
	}
	if most := int(minutes*time.Minute/leisure) + urgentInARow; s.applies > most {
		t.Errorf("%d writes in %d minutes, want at most %d", s.applies, minutes, most)
	}
	if atOnce != 2 {
		t.Errorf("of the first loss and the first return %d were published at once", atOnce)
	}
	s.clock.SetTime(due)
	if s.reconcile(t); strings.Contains(s.configMap(t).Data[KeyMachines], "@y.example ") == lost {
		t.Error("the last change is not published once it may be")
	}
}
