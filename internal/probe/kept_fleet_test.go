// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// TestFleetLost: a third of all endpoints is cut off at the same moment. All are out of
// use soon, and none of the others is looked at any later for it: on fake time, in which
// computing takes none, not by a moment.
func TestFleetLost(t *testing.T) {
	t.Parallel()
	const total, share = 45, 3
	synctest.Test(t, func(t *testing.T) {
		network := sshtest.NewNetwork()
		nix := newNix(t, daemontest.Options{})
		file, _ := sshtest.NewKeyFile(t)
		hostKey := sshtest.NewKey(t)
		servers := map[string]*sshtest.Server{}
		var targets []Target
		for i := range total {
			name := fmt.Sprintf("b%03d", i)
			servers[name] = sshtest.Serve(t, network.Listen(name+":22"), hostKey, sshtest.Behavior{Exec: nix.exec})
			targets = append(targets, Target{
				Endpoint: name, Host: name, User: "nixt", Interval: fleetInterval, KeepConnection: true,
				HostKeys:    []string{sshconn.AuthorizedKey(hostKey.PublicKey())},
				Credentials: []Credential{{Name: "k", PrivateKey: file}},
			})
		}
		lost := func(i int) bool { return i%share == 0 }
		p := New(Options{
			Dial: network.Dial, KeepConnections: true, MaxHandshakes: fleetHandshakes, Random: func() float64 { return 0.5 },
		})
		var mu sync.Mutex
		late, began, check := map[string]time.Duration{}, time.Now(), p.check
		p.check = func(ctx context.Context, target *Target, known knowledge) (Result, knowledge, error) {
			result, known, err := check(ctx, target, known)
			mu.Lock()
			defer mu.Unlock()
			late[target.Endpoint] = max(late[target.Endpoint], time.Since(began)%fleetInterval)
			return result, known, err
		}
		p.Set(builder, targets)
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { _ = p.Start(ctx) })
		pass(fleetInterval * 3 / 2)
		for i, target := range targets {
			if lost(i) {
				network.BlackHole(target.Address())
				servers[target.Endpoint].Freeze()
			}
		}
		pass(5 * time.Second)
		for i, target := range targets {
			want := StateHealthy
			if lost(i) {
				want = StateUnhealthy
			}
			if got := p.Snapshot(builder)[target.Endpoint]; got.State != want {
				t.Errorf("%s: %s %s, want %s", target.Endpoint, got.State, got.Reason, want)
			}
		}
		pass(fleetInterval)
		cancel()
		work.Wait()
		for i, target := range targets {
			if !lost(i) && late[target.Endpoint] != 0 {
				t.Errorf("%s: %v late", target.Endpoint, late[target.Endpoint])
			}
			servers[target.Endpoint].Thaw()
		}
	})
}
