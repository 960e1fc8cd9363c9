// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// After a restart the prober starts from what status says: passes before the
// first probe must not change it, whatever it was that the last one found.
func TestStatusSurvivesARestart(t *testing.T) {
	t.Parallel()
	all := map[string]probe.Snapshot{"healthy": healthySnapshot()}
	for _, entry := range probe.Catalogue() {
		name := string(entry.Reason)
		message := "a (a.example.com:22): " + entry.Meaning
		switch entry.Status {
		case probe.StatusUnknown:
			all[name] = doubtfulSnapshot(entry.Step, entry.Reason, message)
		case probe.StatusFalse:
			all[name+", unhealthy"] = failedSnapshot(probe.StateUnhealthy, entry.Step, entry.Reason, message)
			all[name+", suspect"] = failedSnapshot(probe.StateSuspect, entry.Step, entry.Reason, message)
			never := failedSnapshot(probe.StateSuspect, entry.Step, entry.Reason, message)
			never.LastHealthy = time.Time{}
			all[name+", suspect without ever having been healthy"] = never
		}
	}
	all["other systems are declared"] = doubtfulSnapshot(probe.StepSystemsVerified, probe.ReasonNotProbed, "not probed yet")
	all["refuted for some systems"] = refutedSnapshot("a (a.example.com:22): no", "i686-linux", "aarch64-linux")
	all["refuted for a feature"] = featurelessSnapshot("a (a.example.com:22): no", "kvm")
	all["refuted, with a clock that is off"] = skewedSnapshot(refutedSnapshot("a (a.example.com:22): no", "i686-linux"))
	all["doubtful, with a clock that is off"] = skewedSnapshot(
		doubtfulSnapshot(probe.StepSystemsVerified, probe.ReasonFeaturesNotConfirmed, "a (a.example.com:22): no kvm"))
	all["no answer to discovery"] = silentSnapshot()
	idle := healthySnapshot()
	idle.Result.Facts.Features, idle.Result.Facts.MaxJobs = []string{}, 0
	all["neither features nor jobs"] = idle

	for name, snapshot := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := one().Endpoint("b", "b.example.com").Obj()
			snapshots := map[string]probe.Snapshot{"a": snapshot, "b": healthySnapshot()}
			builder.Status = newScope(builder, snapshots).status()
			kept := map[string]probe.Snapshot{}
			for i := range builder.Spec.Endpoints {
				endpoint := &builder.Spec.Endpoints[i]
				one := newScope(builder, nil).restored(endpoint)
				if one == nil {
					t.Fatalf("nothing is restored of %s", endpoint.Name)
				}
				kept[endpoint.Name] = *one
			}
			after := newScope(builder, kept)
			after.now = testTime.Add(time.Minute)
			if diff := cmp.Diff(builder.Status, after.status()); diff != "" {
				t.Errorf("the restart changes the status (-before +after):\n%s", diff)
			}
		})
	}
}

func TestNotRestored(t *testing.T) {
	t.Parallel()
	tests := map[string]*v1alpha1.EndpointStatus{
		"no status":        nil,
		"another machine":  {Address: "b.example.com:22", State: v1alpha1.EndpointHealthy},
		"not probed":       {Address: "a.example.com:22", State: v1alpha1.EndpointUnknown},
		"no key to log in": {Address: "a.example.com:22", State: v1alpha1.EndpointUnhealthy, FailedCondition: v1alpha1.ConditionCredentialsValid},
	}
	for name, status := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := one().Obj()
			if status != nil {
				status.Name = "a"
				builder.Status.Endpoints = []v1alpha1.EndpointStatus{*status}
			}
			if got := newScope(builder, nil).restored(&builder.Spec.Endpoints[0]); got != nil {
				t.Errorf("restored = %+v, want nothing", got)
			}
		})
	}
}

// A machine whose disk was full stays out of use until it has more room than the
// threshold: the prober has to know what it was.
func TestRestoredKeepsWhatTookItOutOfUse(t *testing.T) {
	t.Parallel()
	for _, reason := range []probe.Reason{probe.ReasonDiskPressure, probe.ReasonOverloaded} {
		t.Run(string(reason), func(t *testing.T) {
			t.Parallel()
			builder := one().Obj()
			builder.Status = newScope(builder, snapshots(failedSnapshot(probe.StateUnhealthy, probe.StepMachineFit, reason, "a: full"))).status()
			got := newScope(builder, nil).restored(&builder.Spec.Endpoints[0])
			want := probe.Outcome{Step: probe.StepMachineFit, Status: probe.StatusFalse, Reason: reason, Message: "a: full"}
			if outcome := got.Result.Outcome(probe.StepMachineFit); got.State != probe.StateUnhealthy || got.Reason != reason || outcome != want {
				t.Errorf("restored %s, %s, %+v, want Unhealthy and %+v", got.State, got.Reason, outcome, want)
			}
		})
	}
}
