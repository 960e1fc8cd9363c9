// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// passedAll are the facts of a machine with nothing wrong.
func passedAll() probe.Facts {
	return probe.Facts{
		NixVersion: "2.26.3", ProtocolVersion: "1.38", Trust: probe.Trusted,
		Systems: []string{"x86_64-linux"}, Features: []string{"kvm", "big-parallel"}, MaxJobs: 4, Cores: 8,
		HostKey: builders.HostKey("a"), HostKeyFingerprint: fingerprint(builders.HostKey("a")),
		Credential: builders.DefaultSecret,
	}
}

// healthySnapshot is what the prober keeps of a machine after a good probe.
func healthySnapshot() probe.Snapshot {
	snapshot := probe.Snapshot{
		State: probe.StateHealthy, Reason: probe.ReasonAllPassed, Message: "all is well",
		Since: testTime, LastHealthy: testTime,
		Result: probe.Result{Facts: passedAll(), Started: testTime},
	}
	for _, step := range probe.Steps() {
		snapshot.Result.Outcomes = append(snapshot.Result.Outcomes, probe.Outcome{
			Step: step, Status: probe.StatusTrue, Reason: "Passed", Message: "passed",
		})
	}
	return snapshot
}

// failedSnapshot is what the prober keeps of a machine that a step fails at.
// One that is Suspect was healthy before.
func failedSnapshot(state probe.State, step probe.Step, reason probe.Reason, message string) probe.Snapshot {
	snapshot := probe.Snapshot{State: state, Reason: reason, Message: message, Since: testTime}
	if state == probe.StateSuspect {
		snapshot.LastHealthy = testTime.Add(-time.Minute)
	}
	failed := slices.Index(probe.Steps(), step)
	for i, step := range probe.Steps() {
		outcome := probe.Outcome{Step: step, Status: probe.StatusTrue, Reason: "Passed", Message: "passed"}
		switch {
		case i == failed:
			outcome.Status, outcome.Reason, outcome.Message = probe.StatusFalse, reason, message
		case i > failed:
			outcome.Status, outcome.Reason, outcome.Message = probe.StatusUnknown, probe.ReasonNotReached, "not reached"
		}
		snapshot.Result.Outcomes = append(snapshot.Result.Outcomes, outcome)
	}
	return snapshot
}

// doubtfulSnapshot is healthy, but a step could not be verified.
func doubtfulSnapshot(step probe.Step, reason probe.Reason, message string) probe.Snapshot {
	snapshot := healthySnapshot()
	i := slices.Index(probe.Steps(), step)
	snapshot.Result.Outcomes[i] = probe.Outcome{Step: step, Status: probe.StatusUnknown, Reason: reason, Message: message}
	return snapshot
}

// refutedSnapshot is healthy, but builds fail for some of its systems.
func refutedSnapshot(message string, systems ...string) probe.Snapshot {
	snapshot := doubtfulSnapshot(probe.StepSystemsVerified, probe.ReasonSystemsRefuted, message)
	snapshot.Result.Outcomes[len(snapshot.Result.Outcomes)-1].Status = probe.StatusFalse
	snapshot.Result.Facts.Refuted = systems
	return snapshot
}

// featurelessSnapshot is healthy, but its daemon lacks some features.
func featurelessSnapshot(message string, features ...string) probe.Snapshot {
	snapshot := refutedSnapshot(message)
	snapshot.Result.Outcomes[len(snapshot.Result.Outcomes)-1].Reason = probe.ReasonFeaturesRefuted
	snapshot.Result.Facts.RefutedFeatures = features
	return snapshot
}

const skewedMessage = "a (a.example.com:22): the clock is off"

// skewedSnapshot is a snapshot of a machine whose clock is off besides.
func skewedSnapshot(snapshot probe.Snapshot) probe.Snapshot {
	i := slices.Index(probe.Steps(), probe.StepMachineFit)
	snapshot.Result.Outcomes[i] = probe.Outcome{
		Step: probe.StepMachineFit, Status: probe.StatusFalse, Reason: probe.ReasonClockSkewed, Message: skewedMessage,
	}
	return snapshot
}

// silentSnapshot is healthy, but did not answer to discovery.
func silentSnapshot() probe.Snapshot {
	snapshot := healthySnapshot()
	facts := &snapshot.Result.Facts
	facts.Systems, facts.Features, facts.MaxJobs, facts.Cores = nil, nil, 0, 0
	return snapshot
}

// newSnapshot is what the prober keeps of a machine that it did not probe yet.
func newSnapshot() probe.Snapshot {
	return probe.Snapshot{State: probe.StateUnknown, Reason: probe.ReasonNotProbed, Message: "not probed yet", Since: testTime}
}

// newScope is a pass over a builder with nothing wrong but what snapshots say.
func newScope(builder *v1alpha1.NixBuilder, snapshots map[string]probe.Snapshot) *scope {
	s := &scope{
		builder:          builder,
		key:              probe.Key{Namespace: builder.Namespace, Name: builder.Name},
		now:              testTime,
		accepted:         holds(v1alpha1.ReasonAccepted, "accepted"),
		credentialsValid: holds(v1alpha1.ReasonCredentialsUsable, "usable"),
		credentials:      []probe.Credential{{Name: builders.DefaultSecret}},
		snapshots:        snapshots,
		pins:             map[string]string{},
	}
	for name, snapshot := range snapshots {
		s.pins[name] = pinFor(builder, name, snapshot.Result.Facts)
	}
	return s
}

// condition shortens a condition to what tests compare.
type condition struct {
	Status  metav1.ConditionStatus
	Reason  string
	Message string
}

// conditionsOf maps conditions by type.
func conditionsOf(list []metav1.Condition) map[string]condition {
	out := map[string]condition{}
	for _, c := range list {
		out[c.Type] = condition{Status: c.Status, Reason: c.Reason, Message: c.Message}
	}
	return out
}
