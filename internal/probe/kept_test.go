// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// bench is one machine in memory and a prober that keeps connections to it, on fake
// time and without jitter.
type bench struct {
	prober *Prober
	*sshtest.Server
	network *sshtest.Network
	nix     *nix
	hostKey ssh.Signer
	target  Target
	stop    context.CancelFunc

	mu      sync.Mutex
	began   time.Time
	results []Result
	changes int
	log     bytes.Buffer
}

// Write takes the prober's log.
func (b *bench) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.Write(p)
}

// onBench runs a test on a bench, whose first probe has passed.
func onBench(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{network: sshtest.NewNetwork(), nix: newNix(t, daemontest.Options{}), hostKey: sshtest.NewKey(t)}
		b.restart(t)
		file, _ := sshtest.NewKeyFile(t)
		b.target = Target{
			Endpoint: "a", Host: "a", User: "nixt", KeepConnection: true,
			HostKeys:    []string{sshconn.AuthorizedKey(b.hostKey.PublicKey())},
			Credentials: []Credential{{Name: "k", PrivateKey: file}},
		}
		b.prober = New(Options{
			Dial: b.network.Dial, KeepConnections: true, Random: func() float64 { return 0.5 },
			Log: slog.New(slog.NewTextHandler(b, nil)),
			OnResult: func(_ Key, result Result) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.results = append(b.results, result)
			},
			OnChange: func(Key) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.changes++
			},
		})
		var ctx context.Context
		ctx, b.stop = context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { _ = b.prober.Start(ctx) })
		b.prober.Set(builder, []Target{b.target})
		pass(10 * time.Second)
		b.expect(t, StateHealthy, "")
		b.clear()
		test(t, b)
		b.Thaw()
		b.stop()
		work.Wait()
		pass(time.Second)
		if open := b.Open(); open != 0 {
			t.Errorf("%d connections are left", open)
		}
	})
}

// restart starts the machine's sshd, anew where it was closed.
func (b *bench) restart(t *testing.T) {
	t.Helper()
	b.Server = sshtest.Serve(t, b.network.Listen("a:22"), b.hostKey, sshtest.Behavior{Exec: b.nix.exec})
}

// clear begins counting probes and changes anew.
func (b *bench) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.began, b.results, b.changes = time.Now(), nil, 0
}

func (b *bench) counts() (probes, changes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.results), b.changes
}

// expect checks the state, and the reason unless empty.
func (b *bench) expect(t *testing.T, state State, reason Reason) {
	t.Helper()
	got := b.prober.Snapshot(builder)["a"]
	if got.State != state || reason != "" && got.Reason != reason {
		t.Errorf("after %v: %s %s (%s), want %s %s", time.Since(b.began), got.State, got.Reason, got.Message, state, reason)
	}
}

// expectSince checks how long after clear the state came about.
func (b *bench) expectSince(t *testing.T, least, most time.Duration) {
	t.Helper()
	if after := b.prober.Snapshot(builder)["a"].Since.Sub(b.began); after < least || after > most {
		t.Errorf("it took %v, want %v to %v", after, least, most)
	}
}

func (b *bench) expectOpen(t *testing.T, want int) {
	t.Helper()
	if got := b.Open(); got != want {
		t.Errorf("after %v: %d connections open, want %d", time.Since(b.began), got, want)
	}
}

// TestKeptSteady: there is one connection between probes, probes come as they would
// without, and nothing shows for hours.
func TestKeptSteady(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.expectOpen(t, 1)
		accepted := b.Accepted()
		for range 20 {
			pass(30 * time.Second)
			b.expectOpen(t, 1)
		}
		if probes, changes := b.counts(); probes != 20 || changes != 0 || b.Accepted() != accepted+20 {
			t.Errorf("%d probes, %d changes, %d connections", probes, changes, b.Accepted()-accepted)
		}
	})
}

// TestKeptLost: what becomes of an endpoint whose kept connection is lost, by what
// happened there.
func TestKeptLost(t *testing.T) {
	const silence = (keepaliveMissed + 1) * keepaliveInterval
	tests := map[string]struct {
		happens    func(t *testing.T, b *bench)
		wantReason Reason // empty: nothing changes
		least      time.Duration
		most       time.Duration
		wantProbes int
	}{
		"sshd restarted": {
			happens:    func(_ *testing.T, b *bench) { b.CloseConnections() },
			wantProbes: 1,
		},
		"sshd restarted slowly": {
			happens: func(t *testing.T, b *bench) {
				b.Close()
				pass(redialGrace * 3 / 4)
				b.restart(t)
			},
			wantProbes: 1,
		},
		"sshd killed": {
			happens:    func(_ *testing.T, b *bench) { b.Close() },
			wantReason: ReasonConnectionRefused, least: redialGrace, most: redialGrace, wantProbes: 1,
		},
		"machine frozen": {
			happens:    func(_ *testing.T, b *bench) { b.Freeze() },
			wantReason: ReasonSSHStopped, least: keepaliveInterval, most: silence + redialTimeout*3/2, wantProbes: 1,
		},
		"line cut silently": {
			happens: func(_ *testing.T, b *bench) {
				b.network.BlackHole("a:22")
				b.Freeze()
			},
			wantReason: ReasonConnectTimeout, least: keepaliveInterval, most: silence + redialTimeout, wantProbes: 1,
		},
		"stopped answering logins": {
			happens: func(_ *testing.T, b *bench) {
				b.fault(sshtest.FaultStopAtLogin)
				b.CloseConnections()
			},
			wantReason: ReasonAuthTimeout, least: redialTimeout, most: redialTimeout, wantProbes: 1,
		},
		"turns away": {
			happens: func(_ *testing.T, b *bench) {
				b.fault(sshtest.FaultHangUp)
				b.CloseConnections()
			},
			wantReason: ReasonTurnedAway, least: redialGrace, most: redialGrace, wantProbes: 1,
		},
		"Nix gone": {
			happens: func(_ *testing.T, b *bench) {
				b.daemon(fail(127, "bash: line 1: nix-daemon: command not found\n"))
				b.CloseConnections()
			},
			wantReason: ReasonNixNotFound, wantProbes: 1,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				tc.happens(t, b)
				pass(8 * time.Second)
				if tc.wantReason == "" {
					b.expect(t, StateHealthy, "")
					b.expectOpen(t, 1)
					if _, changes := b.counts(); changes != 0 {
						t.Errorf("%d changes", changes)
					}
				} else {
					b.expect(t, StateUnhealthy, tc.wantReason)
					b.expectSince(t, tc.least, tc.most)
				}
				b.mu.Lock()
				defer b.mu.Unlock()
				if soon := countBefore(b.results, b.began.Add(3*time.Second)); soon != tc.wantProbes {
					t.Errorf("%d probes began soon, want %d", soon, tc.wantProbes)
				}
			})
		})
	}
}

// fault makes new connections fail in some way.
func (b *bench) fault(fault sshtest.Fault) {
	b.Server.Set(sshtest.Behavior{Exec: b.nix.exec, Fault: fault})
}

// daemon replaces nix-daemon on new connections.
func (b *bench) daemon(exec sshtest.Exec) {
	other := &nix{daemon: b.nix.daemon, commands: map[string]sshtest.Exec{"nix-daemon": exec}}
	b.Server.Set(sshtest.Behavior{Exec: other.exec})
}

func countBefore(results []Result, end time.Time) int {
	n := 0
	for _, result := range results {
		if result.Started.Before(end) {
			n++
		}
	}
	return n
}

// TestKeptLostDuringProbe: a probe that had begun when the connection was lost would
// wait for the builder with patience, and is not waited for.
func TestKeptLostDuringProbe(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		pass(20*time.Second - time.Millisecond)
		b.clear()
		b.daemon(func(command string, stdio sshtest.Stdio) int {
			b.Freeze()
			return hang(command, stdio)
		})
		pass(7 * time.Second)
		b.expect(t, StateUnhealthy, ReasonSSHStopped)
		b.expectSince(t, keepaliveInterval, (keepaliveMissed+1)*keepaliveInterval+2*redialTimeout)
	})
}

// TestKeptBack: a builder that is back is healthy within one interval, however long it
// was away, and its connection is kept again.
func TestKeptBack(t *testing.T) {
	for _, away := range []time.Duration{5 * time.Second, time.Minute, 59*time.Minute + 7*time.Second} {
		t.Run(away.String(), func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				b.Close()
				pass(away)
				b.expect(t, StateUnhealthy, ReasonConnectionRefused)
				b.restart(t)
				b.clear()
				pass(DefaultInterval)
				b.expect(t, StateHealthy, "")
				b.expectSince(t, 0, DefaultInterval*9/10)
				b.expectOpen(t, 1)
			})
		})
	}
}

// TestKeptRespite: where connections are lost again and again while the builder is
// well, it is probed a few times more than it would be without, and one line says so.
func TestKeptRespite(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		for lost := range 300 {
			b.CloseConnections()
			pass(2 * time.Second)
			if lost == maxSpurious-1 {
				b.expectOpen(t, 0)
			}
		}
		probes, changes := b.counts()
		if plain := 600 / 30; changes != 0 || probes < plain || probes > plain+10 {
			t.Errorf("%d probes in 10 minutes, %d changes", probes, changes)
		}
		b.mu.Lock()
		if n := strings.Count(b.log.String(), "lost again and again"); n != 1 {
			t.Errorf("%d lines about it:\n%s", n, b.log.String())
		}
		b.mu.Unlock()
		// When it ends, connections are kept again, and what was counted is forgotten.
		pass(2 * keptRespite)
		b.expectOpen(t, 1)
		b.CloseConnections()
		pass(time.Second)
		b.expectOpen(t, 1)
	})
}

// TestKeptUnanswered: a server that does not answer keepalives has its connections
// taken for lost; that costs it nothing but those.
func TestKeptUnanswered(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.fault(sshtest.FaultIgnoreGlobal)
		pass(15 * time.Minute)
		probes, changes := b.counts()
		if plain := 900 / 30; changes != 0 || probes > plain+10 {
			t.Errorf("%d probes in a quarter of an hour, %d changes", probes, changes)
		}
		b.expect(t, StateHealthy, "")
	})
}
