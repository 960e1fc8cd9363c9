// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package pace bounds how often objects are written: a few times in a row without a
// pause, so that news is told while it is new, but on average no more often than
// machines that come and go are worth.
package pace

import (
	"sync"
	"time"
)

// Pace remembers how much each object was written lately. It starts empty: the first
// writes after a restart wait for nothing. It is safe for concurrent use.
type Pace struct {
	every time.Duration

	mu      sync.Mutex
	objects map[string]history
}

// history is what is remembered of an object.
type history struct {
	last time.Time
	// free is when all writes so far would have happened at the latest, had each
	// waited its turn.
	free time.Time
}

// New returns a pace of one write in every, on average.
func New(every time.Duration) *Pace {
	return &Pace{every: every, objects: map[string]history{}}
}

// Wait returns how long a write of an object has to wait that may be the last of as
// many as inARow, at least 1, without a pause; 0 is not at all.
func (p *Pace) Wait(object string, now time.Time, inARow int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	known, ok := p.objects[object]
	if !ok || now.Before(known.last) { // the clock was set
		return 0
	}
	return max(known.free.Sub(now)-time.Duration(inARow-1)*p.every, 0)
}

// Note counts a write.
func (p *Pace) Note(object string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	free := now
	if known, ok := p.objects[object]; ok && known.free.After(now) && !now.Before(known.last) {
		free = known.free
	}
	p.objects[object] = history{last: now, free: free.Add(p.every)}
}

// Forget drops an object.
func (p *Pace) Forget(object string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.objects, object)
}
