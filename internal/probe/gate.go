// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"sync"
	"time"
)

const (
	// hostPatience is how long an attempt to connect keeps others away from the
	// same host. One that takes longer is waiting for a host that does not answer,
	// and would delay other endpoints behind the same name for nothing.
	hostPatience = 2 * time.Second
	// jumpPatience is the same for a jump host. Many endpoints may be behind it, which
	// are all to be found out soon where it does not answer.
	jumpPatience = 500 * time.Millisecond
	// turnPatience is how long a handshake counts as busy. Its computations take
	// milliseconds; one that takes longer is waiting for its peer.
	turnPatience = 250 * time.Millisecond
)

// gate bounds what probes do at the same time, in a way that peers that do not
// answer take nothing from others: a place is given back when its holder is
// evidently only waiting. Black-holed endpoints thus cost a goroutine and a socket
// each, and nobody's time.
type gate struct {
	turns chan struct{} // a place per key exchange under way

	mu    sync.Mutex
	hosts map[string]*hostGate
}

type hostGate struct {
	place chan struct{} // holds one token
	users int           // holder and waiters; the entry goes with the last
}

func newGate(handshakes int) *gate {
	return &gate{turns: make(chan struct{}, handshakes), hosts: map[string]*hostGate{}}
}

// host waits until nobody else connects to the host. The returned function gives
// the place back; it may be called more than once and by itself comes into effect
// after hostPatience.
func (g *gate) host(ctx context.Context, name string) (release func(), err error) {
	return g.wait(ctx, name, hostPatience)
}

// jumpHost is host for one that endpoints are behind.
func (g *gate) jumpHost(ctx context.Context, name string) (release func(), err error) {
	return g.wait(ctx, name, jumpPatience)
}

func (g *gate) wait(ctx context.Context, name string, patience time.Duration) (release func(), err error) {
	g.mu.Lock()
	h := g.hosts[name]
	if h == nil {
		h = &hostGate{place: make(chan struct{}, 1)}
		g.hosts[name] = h
	}
	h.users++
	g.mu.Unlock()

	leave := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(g.hosts, name)
		}
	}
	select {
	case h.place <- struct{}{}:
		return lease(patience, func() { <-h.place; leave() }), nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// turn waits for a place to compute a key exchange. The returned function gives it
// back, as that of host does, after turnPatience at the latest.
func (g *gate) turn(ctx context.Context) (release func(), err error) {
	select {
	case g.turns <- struct{}{}:
		return lease(turnPatience, func() { <-g.turns }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// lease makes release take effect once: when called, or after a while.
func lease(patience time.Duration, release func()) func() {
	once := sync.OnceFunc(release)
	timer := time.AfterFunc(patience, once)
	return func() {
		timer.Stop()
		once()
	}
}
