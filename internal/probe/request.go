// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"container/heap"
	"time"
)

// Request probes every endpoint of a builder at once, and again where one is being
// probed just now: whatever its pace, and even where a refused login would have it
// left alone. Such a probe asks the builder anew what it offers, and builds a canary
// where the target wants any, unless one is under way on the same machine.
//
// The token names the request. [Snapshot.Requested] is it when the result is in, also
// where the endpoint was changed meanwhile. The same token again concerns only
// endpoints that have come since. An empty one, or one for a builder that is not set,
// does nothing.
func (p *Prober) Request(builder Key, token string) {
	if token == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.builders[builder] {
		if e.wanted == token {
			continue
		}
		e.wanted = token
		if e.cancel == nil { // else the end of the probe under way starts the next
			p.hasten(e)
		}
	}
	p.rouse()
}

// requested tells whether there is a request that the next probe is to answer.
func (e *endpoint) requested() bool { return e.wanted != "" && e.wanted != e.snapshot.Requested }

// hasten makes an endpoint that waits for its turn due now. Called with the mutex held.
func (p *Prober) hasten(e *endpoint) {
	e.due = time.Now()
	if e.place != notQueued {
		heap.Fix(&p.agenda, e.place)
	}
}

// anew returns what is known in a form that has everything found out again.
func (k knowledge) anew() knowledge {
	k.offerUntil, k.fitness.mute = time.Time{}, time.Time{}
	k.canaries.ran, k.canaries.doubt = time.Time{}, true
	return k
}
