// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// TestKeptEnds: what ends a kept connection besides its loss.
func TestKeptEnds(t *testing.T) {
	tests := map[string]struct {
		happens  func(t *testing.T, b *bench)
		wantOpen int
	}{
		"nothing":   {func(*testing.T, *bench) {}, 1},
		"forgotten": {func(_ *testing.T, b *bench) { b.prober.Forget(builder) }, 0},
		"stopped":   {func(_ *testing.T, b *bench) { b.stop() }, 0},
		"led elsewhere": {func(_ *testing.T, b *bench) {
			b.target.Host = "elsewhere"
			b.prober.Set(builder, []Target{b.target})
		}, 0},
		"switched off": {func(_ *testing.T, b *bench) {
			b.target.KeepConnection = false
			b.prober.Set(builder, []Target{b.target})
			pass(time.Minute)
		}, 0},
		"switched on again": {func(_ *testing.T, b *bench) {
			b.target.KeepConnection = false
			b.prober.Set(builder, []Target{b.target})
			b.target.KeepConnection = true
			b.prober.Set(builder, []Target{b.target})
			pass(time.Minute)
		}, 1},
		"another credential": {func(t *testing.T, b *bench) {
			file, _ := sshtest.NewKeyFile(t)
			b.target.Credentials = []Credential{{Name: "new", PrivateKey: file}}
			b.prober.Set(builder, []Target{b.target})
		}, 1},
		"Nix gone": {func(_ *testing.T, b *bench) {
			b.daemon(fail(127, "bash: line 1: nix-daemon: command not found\n"))
			pass(30 * time.Second)
		}, 1},
		"Nix gone for long": {func(_ *testing.T, b *bench) {
			b.daemon(fail(127, "bash: line 1: nix-daemon: command not found\n"))
			pass(3 * 30 * time.Second)
		}, 0},
		"unreachable": {func(_ *testing.T, b *bench) {
			b.network.BlackHole("a:22")
			pass(3 * 40 * time.Second)
		}, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				tc.happens(t, b)
				pass(time.Second)
				b.expectOpen(t, tc.wantOpen)
			})
		})
	}
}

// TestKeptSuspect: a probe that fails does not keep the loss of an older connection
// from showing, however close the two are.
func TestKeptSuspect(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.daemon(func(string, sshtest.Stdio) int {
			go b.Close() // the probe fails for the same reason
			return 1
		})
		pass(20 * time.Second)
		b.clear()
		pass(5 * time.Second)
		b.expect(t, StateUnhealthy, ReasonConnectionRefused)
		b.expectSince(t, 0, redialGrace)
	})
}

// TestKeptForgottenMachine: the loss of a connection to a machine that an endpoint no
// longer leads to means nothing.
func TestKeptForgottenMachine(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		other := sshtest.Serve(t, b.network.Listen("b:22"), b.hostKey, sshtest.Behavior{Exec: b.nix.exec})
		b.target.Host = "b"
		b.prober.Set(builder, []Target{b.target})
		b.Close()
		pass(5 * time.Second)
		b.expect(t, StateHealthy, "")
		if probes, _ := b.counts(); probes != 1 || other.Open() != 1 {
			t.Errorf("%d probes, %d connections", probes, other.Open())
		}
	})
}

// TestKeptNot: nothing is kept where either the target or the options say so.
func TestKeptNot(t *testing.T) {
	tests := map[string]struct{ options, target bool }{
		"switched off for all":      {false, true},
		"switched off for this one": {true, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				b.prober.Forget(builder)
				pass(time.Second)
				b.prober.mu.Lock()
				b.prober.keeps = tc.options
				b.prober.mu.Unlock()
				b.target.KeepConnection = tc.target
				b.prober.Set(builder, []Target{b.target})
				for range 5 {
					pass(20 * time.Second)
					b.expect(t, StateHealthy, "")
					b.expectOpen(t, 0)
				}
			})
		})
	}
}

// TestRedialPatience: builders that are slow to log in to are given more time.
func TestRedialPatience(t *testing.T) {
	t.Parallel()
	took := func(reach, key, login time.Duration) Result {
		result := passed()
		result.Took = make([]time.Duration, len(result.Outcomes))
		copy(result.Took, []time.Duration{reach, key, login, time.Minute})
		return result
	}
	tests := map[string]struct {
		last Result
		want time.Duration
	}{
		"never timed":  {passed(), redialTimeout},
		"restored":     {Result{}, redialTimeout},
		"fast":         {took(time.Millisecond, time.Millisecond, time.Millisecond), redialTimeout},
		"slow login":   {took(time.Millisecond, time.Millisecond, 2*time.Second), 6 * time.Second},
		"far too slow": {took(9*time.Second, time.Millisecond, time.Millisecond), DefaultTimeout},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := redialPatience(DefaultTimeout, &tc.last); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	if got := redialPatience(time.Second, &Result{}); got != time.Second {
		t.Errorf("more than the timeout: %v", got)
	}
}

var _ idleConn = (*sshconn.Conn)(nil)
