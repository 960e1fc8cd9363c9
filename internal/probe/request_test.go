// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// expectAnswer checks which request was answered last, and by a probe that began when.
func (s *stage) expectAnswer(t *testing.T, endpoint, token string, began float64) {
	t.Helper()
	got := s.Snapshot(builder)[endpoint]
	if got.Requested != token {
		t.Errorf("%s answers %q, want %q", endpoint, got.Requested, token)
		return
	}
	if at := got.RequestedResult.Started.Sub(s.began).Seconds(); token != "" && at != began {
		t.Errorf("%s: the probe for %q began at %v, want %v", endpoint, token, at, began)
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	onStage(t, func(t *testing.T, s *stage) {
		s.Request(builder, "early") // there is nothing to probe yet
		s.Set(builder, []Target{target("a"), target("b")})
		pass(10 * time.Second)
		s.expectAnswer(t, "a", "", 0)
		changes := s.changed()
		s.Request(builder, "one")
		s.Request(builder, "")
		s.Request(Key{Namespace: "ci", Name: "other"}, "two")
		pass(time.Second)
		s.expectAnswer(t, "a", "one", 10)
		s.expectAnswer(t, "b", "one", 10)
		if got := s.changed() - changes; got != 2 {
			t.Errorf("%d changes", got)
		}
		s.Request(builder, "one")
		pass(80 * time.Second)
		// Probes go on from there, and leave the answer alone.
		s.expectStarts(t, "a", 0, 10, 40, 70)
		s.expectAnswer(t, "a", "one", 10)
		s.Set(builder, []Target{target("a"), target("b"), target("c")})
		s.Request(builder, "one")
		pass(5 * time.Second)
		s.expectAnswer(t, "c", "one", 91)
		s.expectStarts(t, "a", 0, 10, 40, 70)
	})
}

// TestRequestPutOff: neither backoff nor a refused login puts a requested probe off.
func TestRequestPutOff(t *testing.T) {
	t.Parallel()
	for _, reason := range []Reason{ReasonConnectTimeout, ReasonAuthRefused, ReasonHostKeyChanged} {
		t.Run(string(reason), func(t *testing.T) {
			t.Parallel()
			onStage(t, func(t *testing.T, s *stage) {
				s.answer = func(context.Context, *Target, int) Result { return failed(reason) }
				s.Set(builder, []Target{target("a")})
				pass(time.Hour + 500*time.Millisecond)
				before := len(s.starts("a"))
				s.Request(builder, "now")
				pass(time.Millisecond)
				if after := len(s.starts("a")); after != before+1 {
					t.Errorf("%d probes", after-before)
				}
				s.expectAnswer(t, "a", "now", 3600.5)
				if got := s.Snapshot(builder)["a"].RequestedResult; got.Outcomes == nil {
					t.Error("no result")
				}
			})
		})
	}
}

// TestRequestMeanwhile: a probe that had begun before the request does not answer it,
// and an endpoint that is changed meanwhile answers all the same.
func TestRequestMeanwhile(t *testing.T) {
	t.Parallel()
	slow := func(ctx context.Context, _ *Target, _ int) Result {
		select {
		case <-ctx.Done():
		case <-time.After(4 * time.Second):
		}
		return passed()
	}
	tests := map[string]struct {
		happens func(s *stage)
		token   string
		began   float64
	}{
		"being probed": {func(s *stage) {
			pass(time.Second)
			s.Request(builder, "one")
		}, "one", 4},
		"asked twice": {func(s *stage) {
			s.Request(builder, "one")
			pass(5 * time.Second)
			s.Request(builder, "two")
		}, "two", 8},
		"credential changed": {func(s *stage) {
			pass(5 * time.Second)
			s.Request(builder, "one")
			pass(time.Second)
			other := target("a")
			other.Credentials[0].PrivateKey = Secret("2")
			s.Set(builder, []Target{other})
		}, "one", 6},
		"led elsewhere": {func(s *stage) {
			pass(5 * time.Second)
			s.Request(builder, "one")
			pass(time.Second)
			other := target("a")
			other.Host = "elsewhere"
			s.Set(builder, []Target{other})
		}, "one", 6},
		"led elsewhere after the answer": {func(s *stage) {
			pass(5 * time.Second)
			s.Request(builder, "one")
			pass(10 * time.Second)
			other := target("a")
			other.Host = "elsewhere"
			s.Set(builder, []Target{other})
		}, "one", 15},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onStage(t, func(t *testing.T, s *stage) {
				s.answer = slow
				s.Set(builder, []Target{target("a")})
				pass(time.Millisecond)
				tc.happens(s)
				pass(15 * time.Second)
				got := s.Snapshot(builder)["a"]
				if at := got.RequestedResult.Started.Sub(s.began).Truncate(time.Second).Seconds(); got.Requested != tc.token || at != tc.began {
					t.Errorf("answered %q by the probe of second %v, want %q by that of %v", got.Requested, at, tc.token, tc.began)
				}
			})
		})
	}
}

// TestRequestAnew: a requested probe asks the builder what it offers and builds
// canaries, whatever their pace.
func TestRequestAnew(t *testing.T) {
	t.Parallel()
	now := time.Now()
	known := knowledge{
		offer: &offer{}, offerUntil: now.Add(time.Minute),
		canaries: canaries{nixVersion: "2.34.8", ran: now, due: now.Add(time.Hour), verdicts: []canaryVerdict{{system: "x", status: StatusTrue}}},
	}
	if known.canaries.isDue([]string{"x"}, nil, "2.34.8", now) {
		t.Fatal("due before")
	}
	anew := known.anew()
	if !anew.canaries.isDue([]string{"x"}, nil, "2.34.8", now) || now.Before(anew.offerUntil) {
		t.Errorf("got %+v", anew)
	}
	if known.canaries.doubt || known.offerUntil.IsZero() {
		t.Error("what was known has changed")
	}
}

// TestTook: each step has its own time, and those not reached have none.
func TestTook(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		fault sshtest.Fault
		dial  time.Duration
		want  map[Step]time.Duration
	}{
		"healthy":            {want: map[Step]time.Duration{}},
		"slow network":       {dial: 3 * time.Second, want: map[Step]time.Duration{StepReachable: 3 * time.Second}},
		"login hangs":        {fault: sshtest.FaultStopAtLogin, want: map[Step]time.Duration{StepAuthenticated: DefaultTimeout}},
		"nix-daemon hangs":   {fault: sshtest.FaultStopAtExec, want: map[Step]time.Duration{StepNixAvailable: DefaultTimeout}},
		"key exchange hangs": {fault: sshtest.FaultStopBeforeKex, want: map[Step]time.Duration{StepReachable: DefaultTimeout}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				network := sshtest.NewNetwork()
				server := sshtest.Serve(t, network.Listen("a:22"), sshtest.NewKey(t), sshtest.Behavior{
					Exec: newNix(t, daemontest.Options{}).exec, Fault: tc.fault,
				})
				file, _ := sshtest.NewKeyFile(t)
				dial := func(ctx context.Context, kind, address string) (net.Conn, error) {
					time.Sleep(tc.dial)
					return network.Dial(ctx, kind, address)
				}
				result, err := Once(t.Context(), Options{Dial: dial}, Target{
					Endpoint: "mac-2", Host: "a", User: "nixt", HostKeys: []string{sshconn.AuthorizedKey(server.HostKey())},
					Credentials: []Credential{{Name: "k", PrivateKey: file}}, Discovery: true, KeepConnection: true,
				})
				if err != nil {
					t.Fatal(err)
				}
				if len(result.Took) != len(result.Outcomes) || len(result.Took) != len(Steps()) {
					t.Fatalf("%d times for %d outcomes", len(result.Took), len(result.Outcomes))
				}
				sum := time.Duration(0)
				for i, outcome := range result.Outcomes {
					sum += result.Took[i]
					if got, want := result.Took[i], tc.want[outcome.Step]; got.Truncate(time.Second) != want {
						t.Errorf("%s took %v, want %v", outcome.Step, got, want)
					}
				}
				if sum > result.Duration {
					t.Errorf("the steps took %v, the whole %v", sum, result.Duration)
				}
				time.Sleep(time.Second)
				if tc.fault == sshtest.FaultNone && server.Open() != 0 {
					t.Error("Once has left a connection")
				}
			})
		})
	}
}

func TestOnceCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	target := target("a")
	target.Credentials[0].PrivateKey, _ = sshtest.NewKeyFile(t)
	target.HostKeys = []string{sshconn.AuthorizedKey(sshtest.NewKey(t).PublicKey())}
	if result, err := Once(ctx, Options{}, target); err == nil {
		t.Errorf("got %+v", result)
	}
}
