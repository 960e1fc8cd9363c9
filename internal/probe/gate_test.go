// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestGateHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1)
		began := time.Now()
		first, err := g.host(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if other, err := g.host(t.Context(), "b"); err != nil || time.Since(began) != 0 {
			t.Errorf("another host waits: %v", err)
		} else {
			other()
		}
		// The second one waits for the first to give the place back.
		var work sync.WaitGroup
		var second func()
		work.Go(func() { second, _ = g.host(t.Context(), "a") })
		time.Sleep(time.Second)
		first()
		first() // has no further effect
		work.Wait()
		if took := time.Since(began); took != time.Second {
			t.Errorf("the second waited %v", took)
		}
		// It keeps the place for longer than is reasonable: the third need not wait.
		third, err := g.host(t.Context(), "a")
		if took := time.Since(began); err != nil || took != time.Second+hostPatience {
			t.Errorf("the third waited %v (%v)", took, err)
		}
		second()
		// The fourth gives up.
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("enough"))
		defer cancel()
		if _, err := g.host(ctx, "a"); err == nil || err.Error() != "enough" {
			t.Errorf("the fourth got %v", err)
		}
		third()
		if len(g.hosts) != 0 {
			t.Errorf("%d hosts are left", len(g.hosts))
		}
	})
}

func TestGateTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2)
		began := time.Now()
		for range 2 {
			if _, err := g.turn(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		release, err := g.turn(t.Context())
		if took := time.Since(began); err != nil || took != turnPatience {
			t.Errorf("the third waited %v (%v)", took, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		release()
		if _, err := newGate(0).turn(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}
