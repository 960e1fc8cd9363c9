// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"testing"
	"time"
)

// TestProberRetarget: what changes when a target does.
func TestProberRetarget(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*Target)
		// wantStarts of probes of a refused endpoint whose target changes after 10 s;
		// unchanged, it would be left alone for a minute.
		wantStarts []float64
		wantState  State // right after the change
	}{
		"nothing": {func(*Target) {}, []float64{0, 60}, StateUnhealthy},
		"secret":  {func(t *Target) { t.Credentials = []Credential{{Name: "k", PrivateKey: Secret("2")}} }, []float64{0, 10, 70}, StateUnhealthy},
		"certificate": {func(t *Target) {
			t.Credentials = []Credential{{Name: "k", PrivateKey: Secret("1"), Certificate: Secret("c")}}
		}, []float64{0, 10, 70}, StateUnhealthy},
		"systems":         {func(t *Target) { t.Systems = []string{"x"} }, []float64{0, 10, 70}, StateUnhealthy},
		"user":            {func(t *Target) { t.User = "root" }, []float64{0, 10, 70}, StateUnknown},
		"host":            {func(t *Target) { t.Host = "b" }, []float64{0, 10, 70}, StateUnknown},
		"host key":        {func(t *Target) { t.HostKeys = []string{"k"} }, []float64{0, 10, 70}, StateUnknown},
		"accepted key":    {func(t *Target) { t.PinnedHostKey = "k" }, []float64{0, 10, 70}, StateUnhealthy},
		"timeout":         {func(t *Target) { t.Timeout = time.Second }, []float64{0, 60}, StateUnhealthy},
		"interval":        {func(t *Target) { t.Interval = 20 * time.Second }, []float64{0, 30}, StateUnhealthy},
		"longer interval": {func(t *Target) { t.Interval = time.Hour }, []float64{0, 60}, StateUnhealthy},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onStage(t, func(t *testing.T, s *stage) {
				s.answer = func(context.Context, *Target, int) Result { return failed(ReasonAuthRefused) }
				before := target("a")
				before.TrustOnFirstUse = true
				s.Set(builder, []Target{before})
				pass(10 * time.Second)
				after := before
				tc.change(&after)
				s.Set(builder, []Target{after})
				if got := s.Snapshot(builder)["a"].State; got != tc.wantState {
					t.Errorf("state is %s, want %s", got, tc.wantState)
				}
				pass(65 * time.Second)
				s.expectStarts(t, "a", tc.wantStarts...)
			})
		})
	}
}

// TestProberExpectations: what was found out about systems that are no longer the
// declared ones is not told of the new ones.
func TestProberExpectations(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		s.Set(builder, []Target{target("a")})
		pass(10 * time.Second)
		before := s.Snapshot(builder)["a"]
		changed := target("a")
		changed.Systems = []string{"x"}
		s.answer = func(context.Context, *Target, int) Result {
			time.Sleep(time.Second)
			return passed()
		}
		s.Set(builder, []Target{changed})
		got := s.Snapshot(builder)["a"]
		if outcome := got.Result.Outcome(StepSystemsVerified); got.State != StateHealthy || outcome.Status != StatusUnknown || outcome.Reason != ReasonNotProbed {
			t.Errorf("%s, %+v right after the change, want healthy with a doubt", got.State, outcome)
		}
		if outcome := before.Result.Outcome(StepSystemsVerified); outcome.Status != StatusTrue {
			t.Errorf("an earlier snapshot has changed: %+v", outcome)
		}
		pass(5 * time.Second)
		got = s.Snapshot(builder)["a"]
		if outcome := got.Result.Outcome(StepSystemsVerified); outcome.Status != StatusTrue {
			t.Errorf("%+v after the next probe", outcome)
		}
	})
}

// TestProberOtherThresholds: a full disk is one whatever else of the spec changes. Only
// other thresholds are a reason to doubt it.
func TestProberOtherThresholds(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*Target)
		want   Reason
	}{
		"features":   {func(t *Target) { t.Features = []string{"kvm"} }, ReasonDiskPressure},
		"thresholds": {func(t *Target) { t.Thresholds.MinFreeBytes = 1 }, ReasonNotProbed},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onStage(t, func(t *testing.T, s *stage) {
				s.answer = func(context.Context, *Target, int) Result {
					time.Sleep(time.Second)
					return failed(ReasonDiskPressure)
				}
				s.Set(builder, []Target{target("a")})
				pass(10 * time.Second)
				changed := target("a")
				tc.change(&changed)
				s.Set(builder, []Target{changed})
				got := s.Snapshot(builder)["a"]
				if outcome := got.Result.Outcome(StepMachineFit); got.State != StateUnhealthy || outcome.Reason != tc.want {
					t.Errorf("%s, %+v, want %s", got.State, outcome, tc.want)
				}
			})
		})
	}
}

func TestHasSpoken(t *testing.T) {
	t.Parallel()
	result := failed(ReasonConnectionRefused)
	tests := map[string]struct {
		kept Snapshot
		want bool
	}{
		"never heard of":              {kept: Snapshot{State: StateUnhealthy, Reason: ReasonConnectTimeout}},
		"never reached":               {kept: Snapshot{State: StateUnhealthy, Reason: ReasonConnectionRefused, Result: result}},
		"healthy once":                {kept: Snapshot{State: StateUnhealthy, LastHealthy: time.Unix(1, 0), Result: result}, want: true},
		"a host key is known":         {kept: Snapshot{State: StateUnhealthy, Result: Result{Facts: Facts{HostKey: "k"}}}, want: true},
		"answered before it stopped":  {kept: Snapshot{State: StateUnhealthy, Reason: ReasonSSHStopped}, want: true},
		"failed at a later step only": {kept: Snapshot{State: StateUnhealthy, Result: Result{Outcomes: []Outcome{{Step: StepReachable, Status: StatusTrue}}}}, want: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := hasSpoken(&tc.kept); got != tc.want {
				t.Errorf("hasSpoken() = %t, want %t", got, tc.want)
			}
		})
	}
}

// TestProberPinComesBack: a key pinned by the prober returns through the object's
// status; that is no change.
func TestProberPinComesBack(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		check := s.check
		s.Prober.check = func(ctx context.Context, t *Target, known knowledge) (Result, knowledge, error) {
			result, known, err := check(ctx, t, known)
			known.firstKey = "k"
			return result, known, err
		}
		first := target("a")
		first.TrustOnFirstUse = true
		s.Set(builder, []Target{first})
		pass(10 * time.Second)
		s.Set(builder, []Target{first}) // from before the status was written
		first.PinnedHostKey = "k"
		s.Set(builder, []Target{first})
		pass(10 * time.Second)
		s.expectStarts(t, "a", 0)
	})
}

// TestProberRetargetWhileProbing: a probe of what no longer is wanted is ended, and
// its result does not count.
func TestProberRetargetWhileProbing(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		s.answer = func(ctx context.Context, t *Target, _ int) Result {
			if t.Host == "a" {
				<-ctx.Done()
				return failed(ReasonConnectTimeout)
			}
			return passed()
		}
		s.Set(builder, []Target{target("a")})
		pass(5 * time.Second)
		moved := target("a")
		moved.Host = "b"
		s.Set(builder, []Target{moved})
		pass(time.Second)
		s.expectStarts(t, "a", 0, 5)
		if got := s.Snapshot(builder)["a"]; got.State != StateHealthy {
			t.Errorf("got %+v", got)
		}
	})
}
