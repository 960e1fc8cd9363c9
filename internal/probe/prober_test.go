// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// stage runs a prober on fake time with a check function of the test.
type stage struct {
	*Prober
	began time.Time

	mu      sync.Mutex
	probes  map[string][]time.Duration // starts by endpoint, since the beginning
	changes map[Key]int
	// answer decides about a probe; nil passes. It may block on ctx.
	answer func(ctx context.Context, t *Target, n int) Result
}

var builder = Key{Namespace: "ci", Name: "mac"}

// onStage runs a test on fake time. Jitter is switched off: 0.5 is its middle.
func onStage(t *testing.T, test func(t *testing.T, s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &stage{began: time.Now(), probes: map[string][]time.Duration{}, changes: map[Key]int{}}
		s.Prober = newProber(Options{
			OnChange: func(key Key) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.changes[key]++
			},
			Random: func() float64 { return 0.5 },
		}, s.check)
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() {
			if err := s.Start(ctx); err != nil {
				t.Errorf("Start: %v", err)
			}
		})
		test(t, s)
		cancel()
		work.Wait()
	})
}

func (s *stage) check(ctx context.Context, t *Target, known knowledge) (Result, knowledge, error) {
	started := time.Now()
	s.mu.Lock()
	s.probes[t.Endpoint] = append(s.probes[t.Endpoint], started.Sub(s.began))
	n, answer := len(s.probes[t.Endpoint]), s.answer
	s.mu.Unlock()
	result := passed()
	if answer != nil {
		result = answer(ctx, t, n)
	}
	if ctx.Err() != nil {
		return Result{}, known, context.Cause(ctx)
	}
	result.Started, result.Duration = started, time.Since(started)
	return result, known, nil
}

// starts returns when an endpoint was probed, in seconds since the beginning.
func (s *stage) starts(endpoint string) []float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []float64
	for _, d := range s.probes[endpoint] {
		out = append(out, d.Seconds())
	}
	return out
}

func (s *stage) changed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes[builder]
}

func (s *stage) expectStarts(t *testing.T, endpoint string, want ...float64) {
	t.Helper()
	if got := s.starts(endpoint); !slices.Equal(got, want) {
		t.Errorf("%s was probed at %v, want %v", endpoint, got, want)
	}
}

func target(name string) Target {
	return Target{
		Endpoint: name, Host: name, User: "nixt", Interval: 30 * time.Second,
		Credentials: []Credential{{Name: "k", PrivateKey: Secret("1")}},
	}
}

// pass lets fake time go by, and everything come to rest.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestProberSteady(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		if got := s.Snapshot(builder); len(got) != 0 {
			t.Errorf("before Set: %v", got)
		}
		s.Set(builder, []Target{target("a"), target("b")})
		if got := s.Snapshot(builder)["a"]; got.State != StateUnknown || got.Reason != ReasonNotProbed {
			t.Errorf("before the first probe: %+v", got)
		}
		pass(100 * time.Second)
		s.expectStarts(t, "a", 0, 30, 60, 90)
		s.expectStarts(t, "b", 0, 30, 60, 90)
		snapshot := s.Snapshot(builder)["a"]
		if snapshot.State != StateHealthy || snapshot.Since.Sub(s.began) != 0 || snapshot.LastHealthy.Sub(s.began) != 90*time.Second {
			t.Errorf("got %+v", snapshot)
		}
		// One change per endpoint, at its first result, and none for hours.
		pass(10 * time.Hour)
		if got := s.changed(); got != 2 {
			t.Errorf("%d changes", got)
		}
	})
}

func TestProberFailure(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		s.answer = func(_ context.Context, _ *Target, n int) Result {
			if n >= 2 && n <= 7 {
				return failed(ReasonConnectTimeout)
			}
			return passed()
		}
		s.Set(builder, []Target{target("a")})
		pass(35 * time.Second)
		if got := s.Snapshot(builder)["a"]; got.State != StateSuspect || !got.Usable() || got.Since.Sub(s.began) != 30*time.Second {
			t.Errorf("after the first failure: %+v", got)
		}
		pass(60 * time.Second)
		if got := s.Snapshot(builder)["a"]; got.State != StateUnhealthy || got.LastHealthy.Sub(s.began) != 0 {
			t.Errorf("after the third: %+v", got)
		}
		pass(100 * time.Second)
		s.expectStarts(t, "a", 0, 30, 60, 90, 93.75, 101.25, 116.25, 140.25, 170.25)
		if got := s.Snapshot(builder)["a"]; got.State != StateHealthy || got.Since.Sub(s.began).Seconds() != 140.25 {
			t.Errorf("after coming back: %+v", got)
		}
		if got := s.changed(); got != 4 { // healthy, suspect, unhealthy, healthy
			t.Errorf("%d changes", got)
		}
	})
}

func TestProberForget(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		ended := false
		s.answer = func(ctx context.Context, t *Target, _ int) Result {
			if t.Endpoint == "hangs" {
				<-ctx.Done()
				ended = true
			}
			return passed()
		}
		s.Set(builder, []Target{target("a"), target("hangs")})
		pass(10 * time.Second)
		changes := s.changed()
		s.Forget(builder)
		pass(time.Hour)
		s.expectStarts(t, "a", 0)
		if got := s.Snapshot(builder); len(got) != 0 || !ended || s.changed() != changes {
			t.Errorf("after Forget: %v, ended %v, %d changes", got, ended, s.changed()-changes)
		}
		if len(s.builders) != 0 || len(s.agenda) != 0 {
			t.Error("something is left")
		}
	})
}

// TestProberRestored: after a restart what was known stays until it is probed, and
// first probes are spread over one interval.
func TestProberRestored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &stage{began: time.Now(), probes: map[string][]time.Duration{}, changes: map[Key]int{}}
		n := 0
		s.Prober = newProber(Options{Random: func() float64 {
			n++
			return float64(n%100) / 100
		}}, s.check)
		var targets []Target
		kept := Snapshot{
			State: StateHealthy, Reason: ReasonAllPassed, Message: messageAllPassed, Since: s.began.Add(-time.Hour),
			Result: Result{Facts: Facts{NixVersion: "2.34.8"}},
		}
		for i := range 100 {
			one := target(fmt.Sprint(i))
			one.Restored = &kept
			targets = append(targets, one)
		}
		s.Set(builder, targets)
		for name, got := range s.Snapshot(builder) {
			if got.State != StateHealthy || !got.Since.Equal(kept.Since) || got.Result.Facts.NixVersion != "2.34.8" || !got.Usable() {
				t.Fatalf("%s: %+v", name, got)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 29999*time.Millisecond)
		defer cancel()
		if err := s.Start(ctx); err != nil {
			t.Error(err)
		}
		tenths := map[int]int{}
		for _, starts := range s.probes {
			tenths[int(starts[0]/(3*time.Second))]++
		}
		for i := range 10 {
			if tenths[i] != 10 {
				t.Errorf("%d first probes in part %d of the interval", tenths[i], i)
			}
		}
	})
}

// TestProberSlowProbe: a probe that takes longer than the interval is followed by
// the next one, never accompanied.
func TestProberSlowProbe(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		s.answer = func(ctx context.Context, _ *Target, _ int) Result {
			select {
			case <-ctx.Done():
			case <-time.After(45 * time.Second):
			}
			return passed()
		}
		s.Set(builder, []Target{target("a")})
		pass(100 * time.Second)
		s.expectStarts(t, "a", 0, 45, 90)
	})
}

// TestProberDuplicateNames: the first of two targets with one name counts.
func TestProberDuplicateNames(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		s.Set(builder, []Target{target("a"), target("a")})
		pass(10 * time.Second)
		s.expectStarts(t, "a", 0)
	})
}

// TestProberStop: the end of Start ends probes under way and waits for them.
func TestProberStop(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		s.answer = func(ctx context.Context, _ *Target, _ int) Result {
			<-ctx.Done()
			return passed()
		}
		s.Set(builder, []Target{target("a"), target("b")})
		pass(time.Second)
	})
}

func TestSameFace(t *testing.T) {
	t.Parallel()
	base := func() Snapshot {
		return Snapshot{State: StateHealthy, Reason: ReasonAllPassed, Message: "m", Result: passed()}
	}
	tests := map[string]struct {
		change func(*Snapshot)
		want   bool
	}{
		"nothing":      {func(*Snapshot) {}, true},
		"times":        {func(s *Snapshot) { s.LastHealthy, s.Result.Started, s.Result.Duration = time.Now(), time.Now(), 1 }, true},
		"state":        {func(s *Snapshot) { s.State = StateSuspect }, false},
		"message":      {func(s *Snapshot) { s.Message = "n" }, false},
		"version":      {func(s *Snapshot) { s.Result.Facts.NixVersion = "2.8.0" }, false},
		"systems":      {func(s *Snapshot) { s.Result.Facts.Systems = []string{"x"} }, false},
		"offered key":  {func(s *Snapshot) { s.Result.Facts.OfferedHostKey = "k" }, false},
		"one outcome":  {func(s *Snapshot) { s.Result.Outcomes[5].Message = "n" }, false},
		"trust":        {func(s *Snapshot) { s.Result.Facts.Trust = Trusted }, false},
		"which secret": {func(s *Snapshot) { s.Result.Facts.Credential = "new" }, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := base(), base()
			tc.change(&b)
			if got := sameFace(&a, &b); got != tc.want {
				t.Errorf("got %v: %s", got, cmp.Diff(a, b))
			}
		})
	}
}
