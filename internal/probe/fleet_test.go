// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// fleet is many endpoints behind a network in memory, some of them bad, and what
// the real prober does with them on fake time: computing takes none, so every delay
// comes from waiting for others.
type fleet struct {
	network *sshtest.Network
	targets []Target
	bad     map[string]bool

	mu   sync.Mutex
	late map[string]time.Duration // worst delay of a probe's end against its due time
	ends map[string]int
}

const (
	fleetInterval   = 30 * time.Second
	fleetHandshakes = 8
	fleetRounds     = 2
)

// newFleet makes total endpoints, of which the first bad ones have a fault:
// FaultNone stands for a black hole.
func newFleet(t *testing.T, total, bad int, fault sshtest.Fault) *fleet {
	t.Helper()
	f := &fleet{
		network: sshtest.NewNetwork(), bad: map[string]bool{},
		late: map[string]time.Duration{}, ends: map[string]int{},
	}
	nix := newNix(t, daemontest.Options{})
	file, _ := sshtest.NewKeyFile(t)
	hostKey := sshtest.NewKey(t)
	for i := range total {
		// Bad ones are spread, so that they are never the last in any order.
		isBad := i*bad/total != (i+1)*bad/total
		name := fmt.Sprintf("b%03d", i)
		address := name + ":22"
		behavior := sshtest.Behavior{Exec: nix.exec}
		if isBad {
			behavior.Fault = fault
		}
		f.bad[name] = isBad
		if isBad && fault == sshtest.FaultNone {
			f.network.BlackHole(address)
		} else {
			sshtest.Serve(t, f.network.Listen(address), hostKey, behavior)
		}
		f.targets = append(f.targets, Target{
			Endpoint: name, Host: name, User: "nixt", Interval: fleetInterval,
			HostKeys:    []string{sshconn.AuthorizedKey(hostKey.PublicKey())},
			Credentials: []Credential{{Name: "k", PrivateKey: file}},
		})
	}
	return f
}

// run probes for a while and notes how late each probe of a good endpoint ended.
func (f *fleet) run(t *testing.T, period time.Duration) *Prober {
	t.Helper()
	p := New(Options{Dial: f.network.Dial, MaxHandshakes: fleetHandshakes, Random: func() float64 { return 0.5 }})
	began, check := time.Now(), p.check
	p.check = func(ctx context.Context, target *Target, known knowledge) (Result, knowledge, error) {
		result, known, err := check(ctx, target, known)
		f.mu.Lock()
		defer f.mu.Unlock()
		due := began.Add(time.Duration(f.ends[target.Endpoint]) * fleetInterval)
		f.ends[target.Endpoint]++
		f.late[target.Endpoint] = max(f.late[target.Endpoint], time.Since(due))
		return result, known, err
	}
	p.Set(builder, f.targets)
	ctx, cancel := context.WithTimeout(t.Context(), period)
	defer cancel()
	if err := p.Start(ctx); err != nil {
		t.Errorf("Start: %v", err)
	}
	return p
}

// TestFleet: of 500 endpoints 100 are bad, and none of the others is looked at any
// later for it. The first probes, all at the same moment, are the worst case.
func TestFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("computes some thousand SSH handshakes")
	}
	t.Parallel()
	tests := map[string]struct {
		fault      sshtest.Fault
		wantLate   time.Duration
		wantReason Reason
	}{
		"black-holed":                 {fault: sshtest.FaultNone, wantReason: ReasonConnectTimeout},
		"accepting and silent":        {fault: sshtest.FaultSilent, wantReason: ReasonSSHSilent},
		"stopped":                     {fault: sshtest.FaultDead, wantReason: ReasonSSHSilent},
		"stopped in the key exchange": {fault: sshtest.FaultStopBeforeKex, wantReason: ReasonHandshakeTimeout, wantLate: 50 / fleetHandshakes * turnPatience},
		"stopped at login":            {fault: sshtest.FaultStopAtLogin, wantReason: ReasonAuthTimeout, wantLate: 50 / fleetHandshakes * turnPatience},
		"running no commands":         {fault: sshtest.FaultStopAtExec, wantReason: ReasonSessionTimeout},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			total, bad := 500, 100
			if tc.fault != sshtest.FaultNone {
				total, bad = 60, 50 // more would add time, not insight
			}
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, total, bad, tc.fault)
				p := f.run(t, fleetRounds*fleetInterval-time.Second)
				for name, snapshot := range p.Snapshot(builder) {
					if f.bad[name] {
						if snapshot.Reason != tc.wantReason {
							t.Errorf("%s: %s %s", name, snapshot.State, snapshot.Reason)
						}
						continue
					}
					if snapshot.State != StateHealthy {
						t.Errorf("%s: %s %s", name, snapshot.State, snapshot.Message)
					}
					if f.ends[name] != fleetRounds || f.late[name] > tc.wantLate {
						t.Errorf("%s: %d probes, up to %v late", name, f.ends[name], f.late[name])
					}
				}
			})
		})
	}
}

// TestOneHandshakePerHost: endpoints behind one host name take turns, those that
// hang do not keep the others waiting for long.
func TestOneHandshakePerHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network := sshtest.NewNetwork()
		nix := newNix(t, daemontest.Options{})
		file, _ := sshtest.NewKeyFile(t)
		hostKey := sshtest.NewKey(t)
		var targets []Target
		for port := range 10 {
			address := fmt.Sprintf("gateway:%d", 2200+port)
			behavior := sshtest.Behavior{Exec: nix.exec}
			if port < 2 {
				behavior.Fault = sshtest.FaultDead
			}
			sshtest.Serve(t, network.Listen(address), hostKey, behavior)
			targets = append(targets, Target{
				Endpoint: fmt.Sprint(port), Host: "gateway", Port: 2200 + port, User: "nixt",
				HostKeys:    []string{sshconn.AuthorizedKey(hostKey.PublicKey())},
				Credentials: []Credential{{Name: "k", PrivateKey: file}},
			})
		}
		var mu sync.Mutex
		busy, most := 0, 0
		dial := func(ctx context.Context, kind, address string) (net.Conn, error) {
			mu.Lock()
			busy++
			most = max(most, busy)
			mu.Unlock()
			defer func() {
				mu.Lock()
				busy--
				mu.Unlock()
			}()
			time.Sleep(10 * time.Millisecond)
			return network.Dial(ctx, kind, address)
		}
		p := New(Options{Dial: dial})
		p.Set(builder, targets)
		ctx, cancel := context.WithTimeout(t.Context(), 2*hostPatience+time.Second)
		defer cancel()
		if err := p.Start(ctx); err != nil {
			t.Error(err)
		}
		healthy := 0
		for _, snapshot := range p.Snapshot(builder) {
			if snapshot.State == StateHealthy {
				healthy++
			}
		}
		if most != 1 || healthy != 8 {
			t.Errorf("%d connections at a time, %d healthy", most, healthy)
		}
	})
}
