// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// What sshd drops before the login is tried again, without the builder being down
// meanwhile.
func TestDroppedConnectionsAreTriedAgain(t *testing.T) {
	tests := map[string]struct {
		err  error
		want int // dials until it is down
		down string
	}{
		"turned away": {
			&sshconn.Error{Kind: sshconn.KindTurnedAway, Detail: "Not allowed at this time"}, 1 + dropRetries, "turns connections away",
		},
		"dropped without a word": {&sshconn.Error{Kind: sshconn.KindTurnedAway}, 1 + dropRetries, "turns connections away"},
		"lost in the key exchange": {
			&sshconn.Error{Kind: sshconn.KindLost, Step: sshconn.StepKeyExchange}, 1 + lostRetries, "unreachable",
		},
		"login refused": {&sshconn.Error{Kind: sshconn.KindAuthRefused}, 1, "refuses the login"},
		"refused":       {&sshconn.Error{Kind: sshconn.KindRefused}, 1, "refuses connections"},
		"stalled":       {&sshconn.Error{Kind: sshconn.KindStalled, Step: sshconn.StepIdentify}, 1, "does not answer"},
		"timed out":     {&sshconn.Error{Kind: sshconn.KindTimeout, Step: sshconn.StepConnect}, 1, "does not answer"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := newMachine(t, daemontest.Options{})
				f, n := newFleet(t, m)
				m.set(tc.err)
				_, err := f.Open(t.Context(), "b/one")
				lost(t, err, tc.err)
				if dials, _ := m.counts(); dials != tc.want || n.down(t, "b/one") != tc.down {
					t.Errorf("%d dials, then it is %q, want %d and %q", dials, n.down(t, "b/one"), tc.want, tc.down)
				}
			})
			if tc.want == 1 {
				return
			}
			bubble(t, func(t *testing.T) {
				m := newMachine(t, daemontest.Options{})
				f, n := newFleet(t, m)
				m.set(tc.err)
				time.AfterFunc(120*time.Millisecond, func() { m.set(nil) })
				open(t, f).Close()
				if dials, _ := m.counts(); dials < 2 || n.down(t, "b/one") != "" {
					t.Errorf("%d dials, then it is %q, want it never to have been down", dials, n.down(t, "b/one"))
				}
			})
		})
	}
}

func TestHandshakesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.dialing = time.Second
		f, _ := newFleet(t, m)
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() { openBulk(t, f).Close() })
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if s := f.Stats()[0]; s.Handshakes != maxHandshakes {
			t.Errorf("%d handshakes at once, want %d", s.Handshakes, maxHandshakes)
		}
		wg.Wait()
	})
}

func TestFirstConnectionIsJittered(t *testing.T) {
	waits := map[time.Duration]bool{}
	bubble(t, func(t *testing.T) {
		for range 10 {
			m := newMachine(t, daemontest.Options{})
			n := &news{}
			f := New(Options{Dial: m.dial, OnChange: n.set, Jitter: time.Second, Logger: slog.New(slog.DiscardHandler)})
			f.Update(document(endpoint("one")))
			began := time.Now()
			open(t, f).Close()
			waits[time.Since(began)] = true
			if time.Since(began) >= time.Second {
				t.Errorf("it took %v", time.Since(began))
			}
			began = time.Now()
			openBulk(t, f).Close()
			if time.Since(began) != 0 {
				t.Error("a later connection was delayed, too")
			}
			f.Close()
		}
	})
	if len(waits) < 2 {
		t.Errorf("all dispatchers come after %v", waits)
	}
}

func TestSilent(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		err  error
		want bool
	}{
		"no answer":         {errSilent, true},
		"keepalive":         {fmt.Errorf("read: %w", &sshconn.Error{Kind: sshconn.KindKeepalive}), true},
		"timeout":           {&sshconn.Error{Kind: sshconn.KindTimeout}, true},
		"given up by TCP":   {&sshconn.Error{Kind: sshconn.KindLost, Err: syscall.ETIMEDOUT}, true},
		"no route any more": {&sshconn.Error{Kind: sshconn.KindLost, Err: syscall.EHOSTUNREACH}, true},
		"reset":             {&sshconn.Error{Kind: sshconn.KindLost, Err: syscall.ECONNRESET}, false},
		"refused":           {&sshconn.Error{Kind: sshconn.KindRefused}, false},
		"ended":             {errDaemon, false},
		"gone":              {errGone, false},
	}
	for name, tc := range tests {
		if got := (&LostError{Err: tc.err}).Silent(); got != tc.want {
			t.Errorf("%s: silent is %t, want %t", name, got, tc.want)
		}
	}
}
