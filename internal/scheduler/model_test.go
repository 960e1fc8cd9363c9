// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"fmt"
	"slices"
	"time"
)

// model is the ledger told simply: one list of requests, every question
// answered by Place on a full snapshot, no index. What it does is the written
// rule, word for word.
type model struct {
	builders []Builder
	taken    map[string]taken
	// orphans have the ends of grace times.
	orphans []orphan
	queue   []*asked // in order of arrival
	// turns has those of all shares that wait.
	turns map[shareKey]int
	count int
}

type orphan struct {
	builder string
	until   time.Time
}

// shareKey names what one client waits for of one need.
type shareKey struct{ client, need string }

// asked is a request, in the model and in the ledger.
type asked struct {
	name    int
	request Request
	share   shareKey
	waiter  *waiter
	// lease is what the ledger, builder what the model has granted.
	lease   *Lease
	builder string
	ended   bool
}

func newAsked(name int, r Request) *asked {
	needs := fmt.Sprintf("%v%q%q", r.Class.Key(), normalized(r.Avoid), normalized(r.Exclude))
	return &asked{name: name, request: r, share: shareKey{r.Client, needs}}
}

// snapshot returns the builders as they are at now, with slots taken.
func (m *model) snapshot(now time.Time) Snapshot {
	s := Snapshot{Builders: slices.Clone(m.builders), Now: now}
	for i := range s.Builders {
		b := &s.Builders[i]
		b.Running, b.Orphaned = m.taken[b.ID].all, m.taken[b.ID].orphaned
	}
	return s
}

// takes returns the builders of s that Place could choose for r if it were up
// to slots, of those that only allows.
func takes(s Snapshot, r Request, only func(Builder) bool) map[string]bool {
	out := map[string]bool{}
	for i := range s.Builders {
		alone := Snapshot{Builders: slices.Clone(s.Builders), Now: s.Now}
		for j := range alone.Builders {
			b := &alone.Builders[j]
			b.Running = max(b.Slots, 0)
			if i == j && only(s.Builders[i]) {
				b.Running = 0
			}
		}
		if _, ok := Place(alone, r); ok {
			out[s.Builders[i].ID] = true
		}
	}
	return out
}

func anyBuilder(Builder) bool  { return true }
func vacantOne(b Builder) bool { return b.Running < b.Slots }
func overlap(a, b map[string]bool) bool {
	for id := range a {
		if b[id] {
			return true
		}
	}
	return false
}

func (m *model) add(a *asked) {
	m.count++
	if !slices.ContainsFunc(m.queue, func(other *asked) bool { return other.share == a.share }) {
		m.turns[a.share] = m.count
	}
	m.queue = append(m.queue, a)
}

func (m *model) remove(a *asked) {
	m.queue = slices.DeleteFunc(m.queue, func(other *asked) bool { return other == a })
}

// first returns the one of some requests, in order of arrival, whose turn it is.
func (m *model) first(from []*asked) *asked {
	return slices.MinFunc(from, func(a, b *asked) int { return m.turns[a.share] - m.turns[b.share] })
}

// settle serves requests as long as one can be.
func (m *model) settle(now time.Time) {
	for {
		s := m.snapshot(now)
		var able []*asked
		for _, a := range m.queue {
			if _, ok := Place(s, a.request); ok {
				able = append(able, a)
			}
		}
		if len(able) == 0 {
			return
		}
		turn := m.first(able)
		free := takes(s, turn.request, vacantOne)
		next := able[slices.IndexFunc(able, func(a *asked) bool {
			return a.request.Client == turn.request.Client && overlap(free, takes(s, a.request, vacantOne))
		})]
		i, _ := Place(s, next.request)
		m.grant(s, next, s.Builders[i].ID)
	}
}

func (m *model) grant(s Snapshot, a *asked, id string) {
	a.builder = id
	t := m.taken[id]
	t.all++
	m.taken[id] = t
	m.remove(a)
	m.count++
	for _, other := range m.queue {
		if other.request.Client == a.request.Client && takes(s, other.request, anyBuilder)[id] {
			m.turns[other.share] = m.count
		}
	}
}

// ahead serves all that compete with a, one after the other, and counts until
// it is a's turn.
func (m *model) ahead(s Snapshot, a *asked) int {
	could := takes(s, a.request, anyBuilder)
	var left []*asked
	for _, other := range m.queue {
		var compete bool
		if len(could) > 0 {
			compete = overlap(could, takes(s, other.request, anyBuilder))
		} else {
			compete = other.share.need == a.share.need || slices.ContainsFunc(s.Builders, func(b Builder) bool {
				return b.Serves(other.request.Class) && b.Serves(a.request.Class)
			})
		}
		if compete {
			left = append(left, other)
		}
	}
	// Among those that compete a client has one turn.
	turns := map[string]int{}
	for _, other := range left {
		client := other.request.Client
		if turn, ok := turns[client]; !ok || m.turns[other.share] < turn {
			turns[client] = m.turns[other.share]
		}
	}
	for n := 0; ; n++ {
		next := slices.MinFunc(left, func(a, b *asked) int { return turns[a.request.Client] - turns[b.request.Client] })
		if next == a {
			return n
		}
		turns[next.request.Client] = m.count + n + 1
		left = slices.DeleteFunc(left, func(other *asked) bool { return other == next })
	}
}

// give ends a lease or an orphan.
func (m *model) give(id string, t taken) {
	now := m.taken[id]
	now.all -= t.all
	now.orphaned -= t.orphaned
	m.taken[id] = now
}

// next returns the first moment after now at which something happens by itself.
func (m *model) next(now time.Time) time.Time {
	var first time.Time
	consider := func(t time.Time) {
		if t.After(now) && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	for _, o := range m.orphans {
		consider(o.until)
	}
	for _, b := range m.builders {
		if b.Cordon != nil {
			consider(b.Cordon.Until)
		}
	}
	return first
}

// pass lets the grace times end that are over.
func (m *model) pass(now time.Time) {
	m.orphans = slices.DeleteFunc(m.orphans, func(o orphan) bool {
		if o.until.After(now) {
			return false
		}
		m.give(o.builder, taken{all: 1, orphaned: 1})
		return true
	})
	m.settle(now)
}
