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
	// WaitLimit is the longest time that a request waits, with those before it for the
	// same build; no limit if zero.
	WaitLimit time.Duration
}

// Local is the ledger of one dispatcher: what runs where and who waits. It is
// safe for concurrent use.
type Local struct {
	interval, limit time.Duration

	mu sync.Mutex
	// builders is the last Update; Running and Orphaned in it are current.
	builders []Builder
	// places has the builders' indices by ID.
	places map[string]int
	// taken counts slots by builder ID, also of builders that are gone.
	taken map[string]taken
	// free has the builders with a free slot, usable or not.
	free  set
	queue *queue
	// cordonEnd is when the earliest cordon ends, zero if none does; alarm
	// fires then.
	cordonEnd time.Time
	alarm     *time.Timer
}

// taken counts the slots of a builder that are not free.
type taken struct {
	all, orphaned int
}

// NewLocal returns a ledger without builders.
func NewLocal(opts LocalOptions) *Local {
	if opts.Interval <= 0 {
		opts.Interval = defaultInterval
	}
	return &Local{interval: opts.Interval, limit: opts.WaitLimit, taken: map[string]taken{}, queue: newQueue()}
}

// Update replaces the builders. Their Running and Orphaned are ignored: the
// ledger knows. Whoever can run now is granted a slot.
func (l *Local) Update(builders []Builder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.builders = slices.Clone(builders)
	l.places = make(map[string]int, len(builders))
	for i := range l.builders {
		b := &l.builders[i]
		l.places[b.ID] = i
		b.Running, b.Orphaned = l.taken[b.ID].all, l.taken[b.ID].orphaned
	}
	l.free = vacant(l.builders)
	l.look()
}

// Acquire waits for a slot on a builder that serves the request. While it
// waits it calls notify at once and then every interval. A slot granted while
// notify runs is held and unused until it returns, so notify should be quick.
// The caller must end the lease with Release or Orphan. The only errors are
// the cause of ctx's end and, once the request has waited for as long as the
// ledger allows, a [*WaitLimitError].
func (l *Local) Acquire(ctx context.Context, r Request, notify func(Waiting)) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	w := l.ask(r)
	select {
	case lease := <-w.granted:
		return lease, nil
	default:
	}
	ticker := time.NewTicker(l.interval)
	defer ticker.Stop()
	var limit <-chan time.Time
	if l.limit > 0 {
		timer := time.NewTimer(l.limit - r.Waited)
		defer timer.Stop()
		limit = timer.C
	}
	for {
		if reason, waiting := l.explain(w); waiting {
			notify(reason)
		}
		select {
		case lease := <-w.granted:
			return lease, nil
		case <-ctx.Done():
			if lease, _ := l.abandon(w); lease != nil {
				lease.Release()
			}
			return nil, context.Cause(ctx)
		case <-limit:
			lease, reason := l.abandon(w)
			if lease != nil {
				return lease, nil
			}
			return nil, &WaitLimitError{Limit: l.limit, Waiting: reason}
		case <-ticker.C:
		}
	}
}

// Prospect returns the builder that would get the request if slots did not
// count, by [Prospect]: where its inputs are best sent ahead of it. It takes
// nothing and promises nothing.
func (l *Local) Prospect(r Request) (id string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	i, ok := pick(s.Builders, l.queue.need(s, &r).fit.takes, &r)
	if !ok {
		return "", false
	}
	return s.Builders[i].ID, true
}

// Snapshot returns the builders with what runs on them.
func (l *Local) Snapshot() Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	s.Builders = slices.Clone(s.Builders)
	return s
}

// Waiting returns how many requests wait.
func (l *Local) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queue.waiting
}

// ask puts a request in the queue and serves whoever can be served, which may
// be this one.
func (l *Local) ask(r Request) *waiter {
	w := &waiter{request: r, granted: make(chan *Lease, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	w.since = s.Now
	l.queue.add(w, l.queue.need(s, &r))
	l.grant()
	return w
}

// abandon takes w out of the queue and returns why it has waited, or the slot
// that it was granted meanwhile.
func (l *Local) abandon(w *waiter) (*Lease, Waiting) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	if w.share == nil {
		// Grants happen under the lock and leave the queue: it has been sent.
		return <-w.granted, Waiting{}
	}
	reason := l.queue.explain(s, w)
	l.queue.remove(w)
	return nil, reason
}

// explain returns why w waits, or false if it no longer does.
func (l *Local) explain(w *waiter) (Waiting, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	if w.share == nil {
		return Waiting{}, false
	}
	return l.queue.explain(s, w), true
}

// now returns the ledger's own builders; they are valid while the lock is held.
// If a cordon has ended, whoever waits for that is served first.
func (l *Local) now() Snapshot {
	now := time.Now()
	if !l.cordonEnd.IsZero() && !now.Before(l.cordonEnd) {
		l.look()
	}
	return Snapshot{Builders: l.builders, Now: now}
}

// look takes notice of what builders can be used at present, which requests
// depend on, and serves those that can run. The lock is held.
func (l *Local) look() {
	s := Snapshot{Builders: l.builders, Now: time.Now()}
	l.queue.refit(s)
	l.watchCordons(s)
	l.grant()
}

// grant serves requests as long as one can be. The lock is held.
func (l *Local) grant() {
	for {
		w := l.queue.next(l.free)
		if w == nil {
			return
		}
		i, _ := pick(l.builders, w.share.need.fit.takes.and(l.free), &w.request)
		l.queue.serve(w, i)
		id := l.builders[i].ID
		l.take(id, taken{all: 1})
		w.granted <- &Lease{Builder: id, ledger: l}
	}
}

// take adds to the slots that are taken of a builder. The lock is held.
func (l *Local) take(id string, more taken) {
	t := l.taken[id]
	t.all += more.all
	t.orphaned += more.orphaned
	if t.all == 0 {
		delete(l.taken, id)
	} else {
		l.taken[id] = t
	}
	i, known := l.places[id]
	if !known {
		return
	}
	b := &l.builders[i]
	b.Running, b.Orphaned = t.all, t.orphaned
	if b.Running < b.Slots {
		l.free.add(i)
	} else {
		l.free.remove(i)
	}
}

// give adds to the slots that are taken of a builder, or gives some back, and
// serves those that wait for them.
func (l *Local) give(id string, more taken) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.take(id, more)
	l.grant()
}

// watchCordons arranges for another look when the earliest cordon ends. The
// lock is held.
func (l *Local) watchCordons(s Snapshot) {
	if l.alarm != nil {
		l.alarm.Stop()
		l.alarm = nil
	}
	l.cordonEnd = time.Time{}
	for i := range s.Builders {
		b := &s.Builders[i]
		if !b.Cordoned(s.Now) || b.Cordon.Until.IsZero() {
			continue
		}
		if l.cordonEnd.IsZero() || b.Cordon.Until.Before(l.cordonEnd) {
			l.cordonEnd = b.Cordon.Until
		}
	}
	if !l.cordonEnd.IsZero() {
		l.alarm = time.AfterFunc(l.cordonEnd.Sub(s.Now), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.look()
		})
	}
}
