// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"context"
	"slices"
	"sync"
	"time"
)

// defaultInterval is how often a waiting request is told why it waits.
const defaultInterval = 30 * time.Second

// LocalOptions configure a [Local] ledger. The zero value is useful.
type LocalOptions struct {
	// Interval is the time between two reasons given to one waiting request;
	// 30 s if zero.
	Interval time.Duration
}

// Local is the ledger of one dispatcher: what runs where and who waits. It is
// safe for concurrent use.
type Local struct {
	interval time.Duration

	mu sync.Mutex
	// builders is the last Update; Running in it is current.
	builders []Builder
	// running counts leases by builder ID, also of builders that are gone.
	running map[string]int
	// queue holds the waiting requests in order of arrival.
	queue []*waiter
	// cordonEnd fires when the earliest cordon ends.
	cordonEnd *time.Timer
}

// waiter is one waiting request. granted is written under the ledger's lock and
// has room for the one lease that can come.
type waiter struct {
	request Request
	class   string // its class's key
	since   time.Time
	granted chan *Lease
}

// Lease is a slot on a builder.
type Lease struct {
	// Builder is the ID of the builder.
	Builder string
	release func()
}

// Release gives the slot back. Further calls do nothing.
func (l *Lease) Release() { l.release() }

// NewLocal returns a ledger without builders.
func NewLocal(opts LocalOptions) *Local {
	if opts.Interval <= 0 {
		opts.Interval = defaultInterval
	}
	return &Local{interval: opts.Interval, running: map[string]int{}}
}

// Update replaces the builders. Their Running is ignored: the ledger knows.
// Whoever can run now is granted a slot.
func (l *Local) Update(builders []Builder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.builders = slices.Clone(builders)
	for i := range l.builders {
		l.builders[i].Running = l.running[l.builders[i].ID]
	}
	l.grant()
}

// Acquire waits for a slot on a builder that serves the request. While it
// waits it calls notify at once and then every interval; notify may block, but
// only this request waits for it. The caller must release the lease. The only
// error is the cause of ctx's end.
func (l *Local) Acquire(ctx context.Context, r Request, notify func(Waiting)) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	w := &waiter{request: r, class: r.Class.Key(), since: time.Now(), granted: make(chan *Lease, 1)}
	l.mu.Lock()
	l.queue = append(l.queue, w)
	l.grant()
	l.mu.Unlock()

	select {
	case lease := <-w.granted:
		return lease, nil
	default:
	}
	ticker := time.NewTicker(l.interval)
	defer ticker.Stop()
	for {
		if reason, waiting := l.explain(w); waiting {
			notify(reason)
		}
		select {
		case lease := <-w.granted:
			return lease, nil
		case <-ctx.Done():
			l.abandon(w)
			return nil, context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// Snapshot returns the builders with what runs on them.
func (l *Local) Snapshot() Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.snapshot()
	s.Builders = slices.Clone(s.Builders)
	return s
}

// Waiting returns how many requests wait.
func (l *Local) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// abandon takes w out of the queue. A slot granted meanwhile goes back.
func (l *Local) abandon(w *waiter) {
	l.mu.Lock()
	l.queue = slices.DeleteFunc(l.queue, func(other *waiter) bool { return other == w })
	l.mu.Unlock()
	// Grants happen under the lock and only to those in the queue, so none can
	// come after this look.
	select {
	case lease := <-w.granted:
		lease.Release()
	default:
	}
}

// explain returns why w waits, or false if it no longer does.
func (l *Local) explain(w *waiter) (Waiting, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	place := slices.Index(l.queue, w)
	if place < 0 {
		return Waiting{}, false
	}
	var ahead []Queued
	index := map[string]int{}
	for _, other := range l.queue[:place] {
		i, seen := index[other.class]
		if !seen {
			i = len(ahead)
			index[other.class] = i
			ahead = append(ahead, Queued{Class: other.request.Class})
		}
		ahead[i].Count++
	}
	return Explain(l.snapshot(), w.request.Class, ahead, w.since), true
}

// grant places as many waiting requests as possible, first come first served.
// The lock is held.
func (l *Local) grant() {
	s := l.snapshot()
	// Requests of one class that avoid no builder differ only in their
	// preference: where one of them must wait, all must.
	full := map[string]bool{}
	l.queue = slices.DeleteFunc(l.queue, func(w *waiter) bool {
		if full[w.class] {
			return false
		}
		i, ok := Place(s, w.request)
		if !ok {
			full[w.class] = len(w.request.Avoid) == 0
			return false
		}
		w.granted <- l.lease(&s.Builders[i])
		return true
	})
	l.watchCordons(s)
}

// lease counts one more build on b. The lock is held.
func (l *Local) lease(b *Builder) *Lease {
	id := b.ID
	b.Running++
	l.running[id]++
	return &Lease{Builder: id, release: sync.OnceFunc(func() { l.release(id) })}
}

func (l *Local) release(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running[id]--; l.running[id] == 0 {
		delete(l.running, id)
	}
	for i := range l.builders {
		if l.builders[i].ID == id {
			l.builders[i].Running--
		}
	}
	l.grant()
}

// snapshot shares the ledger's builders; it is valid while the lock is held.
func (l *Local) snapshot() Snapshot {
	return Snapshot{Builders: l.builders, Now: time.Now()}
}

// watchCordons arranges for the next grant when the earliest cordon ends, as
// long as somebody waits. The lock is held.
func (l *Local) watchCordons(s Snapshot) {
	if l.cordonEnd != nil {
		l.cordonEnd.Stop()
		l.cordonEnd = nil
	}
	if len(l.queue) == 0 {
		return
	}
	var first time.Time
	for i := range s.Builders {
		b := &s.Builders[i]
		if !b.Cordoned(s.Now) || b.Cordon.Until.IsZero() {
			continue
		}
		if first.IsZero() || b.Cordon.Until.Before(first) {
			first = b.Cordon.Until
		}
	}
	if !first.IsZero() {
		l.cordonEnd = time.AfterFunc(first.Sub(s.Now), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.grant()
		})
	}
}
