// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"slices"
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
			expectSurvival(t, map[string]probe.Snapshot{"a": snapshot, "b": healthySnapshot()})
		})
	}
}

// expectSurvival compares the status from what the prober knows of machines with that
// after a restart.
func expectSurvival(t *testing.T, snapshots map[string]probe.Snapshot) {
	t.Helper()
	builder := one().Endpoint("b", "b.example.com").Obj()
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
}

// What conditions say of several machines at once is not lost either.
func TestStatusOfSeveralSurvivesARestart(t *testing.T) {
	t.Parallel()
	outcome := func(snapshot *probe.Snapshot, step probe.Step, reason probe.Reason, message string) {
		i := slices.Index(probe.Steps(), step)
		snapshot.Result.Outcomes[i] = probe.Outcome{Step: step, Status: probe.StatusUnknown, Reason: reason, Message: message}
	}
	name := func(endpoint string) string { return endpoint + " (" + endpoint + ".example.com:22): " }
	forced := func(e string) probe.Snapshot {
		snapshot := doubtfulSnapshot(probe.StepSystemsVerified, probe.ReasonDiscoveryUnavailable, name(e)+"does not tell")
		outcome(&snapshot, probe.StepMachineFit, probe.ReasonMachineNotMeasured, name(e)+"cannot be measured")
		return snapshot
	}
	full := func(e string) probe.Snapshot {
		snapshot := failedSnapshot(probe.StateUnhealthy, probe.StepMachineFit, probe.ReasonDiskPressure, name(e)+"full")
		outcome(&snapshot, probe.StepNixAvailable, probe.ReasonStoreFull, name(e)+"no daemon")
		outcome(&snapshot, probe.StepTrusted, probe.ReasonNotReached, "not reached")
		return snapshot
	}
	tests := map[string]map[string]probe.Snapshot{
		"only nix-daemon may be run": {"a": forced("a"), "b": forced("b")},
		"one disk is full":           {"a": healthySnapshot(), "b": full("b")},
		"both disks are full":        {"a": full("a"), "b": full("b")},
	}
	for name, snapshots := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			expectSurvival(t, snapshots)
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
