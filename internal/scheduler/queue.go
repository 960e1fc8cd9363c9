// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"
)

// maxIdleNeeds bounds the needs that are remembered though nothing waits for
// them. Derivations can ask for any features, so there is no end of needs.
const maxIdleNeeds = 256

// waiter is one waiting request. It is written under the ledger's lock; granted
// has room for the one lease that can come.
type waiter struct {
	request Request
	since   time.Time
	granted chan *Lease
	// number grows with every arrival.
	number uint64
	// share is where it waits; nil once it no longer does.
	share *share
}

// need stands for all requests of a class that avoid and exclude the same builders: they
// can use the same builders, whatever else differs.
type need struct {
	key   string
	class Class
	// avoid and exclude are sorted.
	avoid, exclude []string
	fit            fit
	// place is its index in queue.needs, or -1 while nothing waits.
	place int
	// shares has those of all clients that wait, the next one's first.
	shares shares
}

// share is what one client waits for of one need, first come first.
type share struct {
	need    *need
	client  *client
	waiters []*waiter
	// turn is its place in the round: the lowest is next.
	turn uint64
	// place is its index in need.shares.
	place int
}

// client is one of those that take turns.
type client struct {
	name   string
	shares []*share
}

// queue holds the waiting requests and says which is next. The rule is written
// in the package's documentation.
type queue struct {
	needs   []*need          // those that something waits for
	known   map[string]*need // also those that nothing waits for
	clients map[string]*client
	waiting int
	// count numbers arrivals and turns.
	count uint64
}

func newQueue() *queue {
	return &queue{known: map[string]*need{}, clients: map[string]*client{}}
}

// need returns what r needs, in s if it has not been seen lately.
func (q *queue) need(s Snapshot, r *Request) *need {
	avoid, exclude := normalized(r.Avoid), normalized(r.Exclude)
	key := r.Class.Key()
	if len(avoid)+len(exclude) > 0 {
		key += fmt.Sprintf("%q%q", avoid, exclude)
	}
	n := q.known[key]
	if n == nil {
		if len(q.known) >= 2*len(q.needs)+maxIdleNeeds {
			q.forget()
		}
		n = &need{key: key, class: r.Class, avoid: avoid, exclude: exclude, fit: fitting(s, r.Class, avoid, exclude), place: -1}
		q.known[key] = n
	}
	return n
}

// refit makes the queue see other builders.
func (q *queue) refit(s Snapshot) {
	q.forget()
	for _, n := range q.needs {
		n.fit = fitting(s, n.class, n.avoid, n.exclude)
	}
}

// forget drops the needs that nothing waits for.
func (q *queue) forget() {
	clear(q.known)
	for _, n := range q.needs {
		q.known[n.key] = n
	}
}

// add puts w at the end of its client's share of n. A client that did not wait
// for n joins the end of the round.
func (q *queue) add(w *waiter, n *need) {
	q.waiting++
	q.count++
	w.number = q.count
	c := q.clients[w.request.Client]
	if c == nil {
		c = &client{name: w.request.Client}
		q.clients[c.name] = c
	}
	i := slices.IndexFunc(c.shares, func(s *share) bool { return s.need == n })
	if i < 0 {
		if n.place < 0 {
			n.place = len(q.needs)
			q.needs = append(q.needs, n)
		}
		i = len(c.shares)
		s := &share{need: n, client: c, turn: w.number}
		c.shares = append(c.shares, s)
		heap.Push(&n.shares, s)
	}
	w.share = c.shares[i]
	w.share.waiters = append(w.share.waiters, w)
}

// next returns the request that is served next by one of the free builders, or
// nil if all must wait.
func (q *queue) next(free set) *waiter {
	var first *share
	for _, n := range q.needs {
		if s := n.shares[0]; n.fit.takes.intersects(free) && (first == nil || s.before(first)) {
			first = s
		}
	}
	if first == nil {
		return nil
	}
	// It is this client's turn: on what is free for that share, the first of
	// its requests, whichever share that is in.
	w := first.waiters[0]
	for _, s := range first.client.shares {
		if head := s.waiters[0]; head.number < w.number && meet(s.need.fit.takes, first.need.fit.takes, free) {
			w = head
		}
	}
	return w
}

// meet reports whether the three sets share a member.
func meet(a, b, c set) bool {
	for i := range a {
		if a[i]&b[i]&c[i] != 0 {
			return true
		}
	}
	return false
}

// serve takes w out because it is given a slot of the builder at index i. Its
// client goes to the end of the round, for all that could have used that slot.
func (q *queue) serve(w *waiter, i int) {
	c := w.share.client
	q.remove(w)
	q.count++
	for _, s := range c.shares {
		if s.need.fit.takes.has(i) {
			s.turn = q.count
			heap.Fix(&s.need.shares, s.place)
		}
	}
}

// remove takes w out, if it is in the queue.
func (q *queue) remove(w *waiter) {
	s := w.share
	if s == nil {
		return
	}
	w.share = nil
	q.waiting--
	i, _ := slices.BinarySearchFunc(s.waiters, w.number, func(w *waiter, n uint64) int { return cmp.Compare(w.number, n) })
	if i == 0 {
		// The usual case, which must not move thousands of others.
		s.waiters[0] = nil
		s.waiters = s.waiters[1:]
	} else {
		s.waiters = slices.Delete(s.waiters, i, i+1)
	}
	if len(s.waiters) > 0 {
		return
	}
	heap.Remove(&s.need.shares, s.place)
	c := s.client
	c.shares = slices.DeleteFunc(c.shares, func(other *share) bool { return other == s })
	if len(c.shares) == 0 {
		delete(q.clients, c.name)
	}
	if n := s.need; len(n.shares) == 0 {
		last := len(q.needs) - 1
		q.needs[n.place] = q.needs[last]
		q.needs[n.place].place = n.place
		q.needs[last] = nil
		q.needs = q.needs[:last]
		n.place = -1
	}
}

// ahead returns how many requests come before w. In every round each client
// has one of its requests served: before the k-th request of one client come at
// most k+1 of any other.
func (q *queue) ahead(w *waiter) int {
	rivals := newSet(len(q.needs))
	for i, n := range q.needs {
		if n.competes(w.share.need) {
			rivals.add(i)
		}
	}
	own := w.share.client
	turn, _ := own.standing(rivals)
	rounds := own.earlier(w.number, rivals)
	ahead := rounds
	for _, c := range q.clients {
		if c == own {
			continue
		}
		if theirs, n := c.standing(rivals); theirs < turn {
			ahead += min(n, rounds+1)
		} else {
			ahead += min(n, rounds)
		}
	}
	return ahead
}

// standing returns the client's turn among some needs, and how many of its
// requests wait for them.
func (c *client) standing(needs set) (turn uint64, waiting int) {
	turn = math.MaxUint64
	for _, s := range c.shares {
		if needs.has(s.need.place) {
			turn = min(turn, s.turn)
			waiting += len(s.waiters)
		}
	}
	return turn, waiting
}

// earlier returns how many of the client's requests for some needs came before
// the one with the given number.
func (c *client) earlier(number uint64, needs set) (n int) {
	for _, s := range c.shares {
		if needs.has(s.need.place) {
			n += sort.Search(len(s.waiters), func(i int) bool { return s.waiters[i].number >= number })
		}
	}
	return n
}

// competes reports whether requests of n may take slots from those of other:
// whether a builder would take both now or, where none takes other, ever.
func (n *need) competes(other *need) bool {
	if other.fit.takes.empty() {
		return n.fit.serves.intersects(other.fit.serves) || n == other
	}
	return n.fit.takes.intersects(other.fit.takes)
}

// before orders shares by turn. Only those of one client can have the same:
// the one with the earlier request goes first.
func (s *share) before(other *share) bool {
	return cmp.Or(cmp.Compare(s.turn, other.turn), cmp.Compare(s.waiters[0].number, other.waiters[0].number)) < 0
}

// shares is a heap, the next one's share first.
type shares []*share

func (h shares) Len() int           { return len(h) }
func (h shares) Less(i, j int) bool { return h[i].turn < h[j].turn }

func (h shares) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push is for package heap.
func (h *shares) Push(x any) {
	s := x.(*share)
	s.place = len(*h)
	*h = append(*h, s)
}

// Pop is for package heap.
func (h *shares) Pop() any {
	last := len(*h) - 1
	s := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return s
}
