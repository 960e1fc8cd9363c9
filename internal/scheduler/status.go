// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"cmp"
	"slices"
	"time"
)

// maxListed bounds the requests that a [Status] lists: explaining each costs
// time during which nothing is placed.
const maxListed = 1000

// Status is what a ledger knows at one moment, for people.
type Status struct {
	// Builders are those of the last Update, with the slots taken and those of
	// them that are taken by orphans.
	Builders []Builder
	// Waiting is the number of requests that have no slot yet.
	Waiting int
	// Queue has the requests that have waited longest, at most a thousand, in
	// order of arrival.
	Queue []Queued
	// Now is the moment.
	Now time.Time
}

// Queued is a request that waits.
type Queued struct {
	// Label and Client are those of the request.
	Label, Client string
	// Waiting has its class, how many are ahead of it, since when it waits and
	// why.
	Waiting Waiting
}

// Status returns what runs where and who waits for what.
func (l *Local) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	status := Status{Builders: slices.Clone(s.Builders), Waiting: l.queue.waiting, Now: s.Now}
	for _, w := range l.queue.first(maxListed) {
		status.Queue = append(status.Queue, Queued{
			Label: w.request.Label, Client: w.request.Client, Waiting: l.queue.explain(s, w),
		})
	}
	return status
}

// first returns at most n waiters, those that came first.
func (q *queue) first(n int) []*waiter {
	all := make([]*waiter, 0, q.waiting)
	for _, need := range q.needs {
		for _, s := range need.shares {
			// More than n of one share cannot be among the first n.
			all = append(all, s.waiters[:min(n, len(s.waiters))]...)
		}
	}
	slices.SortFunc(all, func(a, b *waiter) int { return cmp.Compare(a.number, b.number) })
	return all[:min(n, len(all))]
}

// explain says why w, which is in the queue, waits.
func (q *queue) explain(s Snapshot, w *waiter) Waiting {
	return explain(s, w.request, w.share.need.fit, q.ahead(w), w.since)
}
