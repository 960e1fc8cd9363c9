// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestObserve(t *testing.T) {
	t.Parallel()
	const pass Reason = ""
	tests := map[string]struct {
		threshold int
		results   []Reason
		want      []State
	}{
		"healthy from the start": {3, []Reason{pass, pass}, []State{StateHealthy, StateHealthy}},
		"threshold": {
			3, []Reason{pass, ReasonConnectTimeout, ReasonConnectTimeout, ReasonConnectTimeout, ReasonConnectTimeout},
			[]State{StateHealthy, StateSuspect, StateSuspect, StateUnhealthy, StateUnhealthy},
		},
		"different failures count together": {
			3, []Reason{pass, ReasonConnectTimeout, ReasonTurnedAway, ReasonSSHStopped},
			[]State{StateHealthy, StateSuspect, StateSuspect, StateUnhealthy},
		},
		"a pass starts anew": {
			2, []Reason{pass, ReasonConnectTimeout, pass, ReasonConnectTimeout, ReasonConnectTimeout},
			[]State{StateHealthy, StateSuspect, StateHealthy, StateSuspect, StateUnhealthy},
		},
		"never healthy": {
			2, []Reason{ReasonConnectTimeout, ReasonConnectTimeout}, []State{StateSuspect, StateUnhealthy},
		},
		"threshold of one":    {1, []Reason{pass, ReasonSSHSilent}, []State{StateHealthy, StateUnhealthy}},
		"host key at once":    {3, []Reason{pass, ReasonHostKeyChanged}, []State{StateHealthy, StateUnhealthy}},
		"login at once":       {3, []Reason{pass, ReasonAuthRefused}, []State{StateHealthy, StateUnhealthy}},
		"passphrase at once":  {3, []Reason{pass, ReasonKeyPassphrase}, []State{StateHealthy, StateUnhealthy}},
		"untrusted at once":   {3, []Reason{pass, ReasonUserNotTrusted}, []State{StateHealthy, StateUnhealthy}},
		"too old at once":     {3, []Reason{pass, ReasonVersionTooOld}, []State{StateHealthy, StateUnhealthy}},
		"login dropped waits": {3, []Reason{pass, ReasonAuthDropped}, []State{StateHealthy, StateSuspect}},
		"no way back but health": {
			3, []Reason{ReasonHostKeyChanged, ReasonConnectTimeout, pass},
			[]State{StateUnhealthy, StateUnhealthy, StateHealthy},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := time.Now()
			snapshot, counts := Snapshot{State: StateUnknown}, streaks{}
			var got []State
			for _, reason := range tc.results {
				now = now.Add(time.Minute)
				before := snapshot
				result := passed()
				if reason != pass {
					result = failed(reason)
				}
				snapshot, counts = observe(snapshot, counts, result, tc.threshold, now)
				got = append(got, snapshot.State)
				changed := before.State != snapshot.State || before.Reason != snapshot.Reason
				if changed != snapshot.Since.Equal(now) {
					t.Errorf("after %q: since %v at %v", reason, snapshot.Since, now)
				}
				if (reason == pass) != snapshot.LastHealthy.Equal(now) {
					t.Errorf("after %q: last healthy %v at %v", reason, snapshot.LastHealthy, now)
				}
				if reason != pass && (snapshot.Reason != reason || snapshot.Message != "it is "+string(reason)) {
					t.Errorf("after %q: %q %q", reason, snapshot.Reason, snapshot.Message)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("states (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUsable(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		snapshot Snapshot
		want     bool
	}{
		"healthy":         {Snapshot{State: StateHealthy}, true},
		"was healthy":     {Snapshot{State: StateSuspect, LastHealthy: time.Now()}, true},
		"never was":       {Snapshot{State: StateSuspect}, false},
		"unhealthy":       {Snapshot{State: StateUnhealthy, LastHealthy: time.Now()}, false},
		"not yet probed":  {Snapshot{State: StateUnknown}, false},
		"nothing at all ": {Snapshot{}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tc.snapshot.Usable(); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// TestRestore: outcomes that were not kept follow from state and reason.
func TestRestore(t *testing.T) {
	t.Parallel()
	since := time.Now().Add(-time.Hour)
	tests := map[string]struct {
		kept Snapshot
		want []Status
	}{
		"healthy": {
			Snapshot{State: StateHealthy, Reason: ReasonAllPassed, Since: since},
			[]Status{StatusTrue, StatusTrue, StatusTrue, StatusTrue, StatusTrue, StatusTrue, StatusTrue},
		},
		"not trusted": {
			Snapshot{State: StateUnhealthy, Reason: ReasonUserNotTrusted, Message: "m", Since: since},
			[]Status{StatusTrue, StatusTrue, StatusTrue, StatusTrue, StatusFalse, StatusUnknown, StatusUnknown},
		},
		"unreachable": {
			Snapshot{State: StateSuspect, Reason: ReasonConnectTimeout, Message: "m", Since: since},
			[]Status{StatusFalse, StatusUnknown, StatusUnknown, StatusUnknown, StatusUnknown, StatusUnknown, StatusUnknown},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			restored := restore(tc.kept)
			var got []Status
			for _, outcome := range restored.Result.Outcomes {
				got = append(got, outcome.Status)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("statuses (-want +got):\n%s", diff)
			}
			if failure, failed := restored.Result.Failure(); failed && (failure.Reason != tc.kept.Reason || failure.Message != "m") {
				t.Errorf("failure is %+v", failure)
			}
			if !restored.Since.Equal(since) || restored.State != tc.kept.State {
				t.Errorf("got %+v", restored)
			}
		})
	}
}

// TestCatalogue: reasons are unique, belong to a step and say what they mean.
func TestCatalogue(t *testing.T) {
	t.Parallel()
	seen := map[Reason]bool{}
	for _, entry := range Catalogue() {
		if seen[entry.Reason] {
			t.Errorf("%s is there twice", entry.Reason)
		}
		seen[entry.Reason] = true
		if entry.Meaning == "" || entry.Step == "" || entry.Status == "" {
			t.Errorf("incomplete: %+v", entry)
		}
		if entry.StaysInUse && (entry.AtOnce || entry.Status != StatusFalse) {
			t.Errorf("%s stays in use, and acts at once or does not fail", entry.Reason)
		}
		if entry.AtOnce && entry.Status != StatusFalse {
			t.Errorf("%s does not fail, but acts at once", entry.Reason)
		}
	}
	for _, step := range Steps() {
		if passedReason(step) == ReasonNotProbed {
			t.Errorf("%s has no reason to be true", step)
		}
	}
}
