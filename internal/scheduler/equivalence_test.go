// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestLedgerDoesWhatTheRuleSays has requests come, go and give up, builders
// change, cordons and grace times end in random order, and holds every grant,
// every position and every slot of the ledger against the model.
func TestLedgerDoesWhatTheRuleSays(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &play{
					T:      t,
					random: rand.New(rand.NewPCG(seed, 5)),
					ledger: NewLocal(LocalOptions{}),
					model:  &model{taken: map[string]taken{}, turns: map[shareKey]int{}},
				}
				for range 150 {
					p.step()
					p.check()
				}
				p.end()
			})
		})
	}
}

// play does the same with a ledger and with the model.
type play struct {
	*testing.T
	random *rand.Rand
	ledger *Local
	model  *model
	all    []*asked
	// moments makes the times at which something ends by itself distinct.
	moments time.Duration
}

func (p *play) step() {
	switch p.random.IntN(10) {
	case 0:
		p.update()
	case 1, 2, 3, 4:
		p.ask()
	case 5, 6:
		p.end1(func(a *asked) { p.release(a) })
	case 7:
		p.end1(func(a *asked) { p.orphan(a) })
	case 8:
		p.abandon()
	case 9:
		p.wait()
	}
}

// later returns a time that nothing else ends at.
func (p *play) later() time.Duration {
	p.moments++
	return time.Duration(1+p.random.IntN(20))*time.Second + p.moments
}

func (p *play) update() {
	builders := randomBuilders(p.random, p.random.IntN(6))
	for i := range builders {
		if c := builders[i].Cordon; c != nil && p.random.IntN(3) > 0 {
			c.Until = time.Now().Add(p.later())
		}
	}
	p.model.builders = builders
	p.model.settle(time.Now())
	p.ledger.Update(builders)
}

func (p *play) ask() {
	r := randomRequest(p.random, len(p.model.builders))
	if p.random.IntN(2) == 0 {
		r.Avoid = nil
	}
	r.Client = []string{"", "anna", "ben"}[p.random.IntN(3)]
	a := newAsked(len(p.all), r)
	p.all = append(p.all, a)
	p.model.add(a)
	p.model.settle(time.Now())
	a.waiter = p.ledger.ask(r)
}

// end1 does something to a request that has a slot.
func (p *play) end1(what func(*asked)) {
	p.one(func(a *asked) bool { return a.lease != nil }, what)
}

func (p *play) one(which func(*asked) bool, what func(*asked)) {
	from := slices.DeleteFunc(slices.Clone(p.all), func(a *asked) bool { return a.ended || !which(a) })
	if len(from) > 0 {
		what(from[p.random.IntN(len(from))])
	}
}

func (p *play) release(a *asked) {
	a.ended = true
	p.model.give(a.builder, taken{all: 1})
	p.model.settle(time.Now())
	a.lease.Release()
	a.lease.Orphan(time.Hour) // too late to mean anything
}

func (p *play) orphan(a *asked) {
	a.ended = true
	grace := p.later()
	p.model.give(a.builder, taken{orphaned: -1})
	p.model.orphans = append(p.model.orphans, orphan{a.builder, time.Now().Add(grace)})
	a.lease.Orphan(grace)
	a.lease.Release()
}

func (p *play) abandon() {
	p.one(func(a *asked) bool { return a.lease == nil }, func(a *asked) {
		a.ended = true
		p.model.remove(a)
		if lease, _ := p.ledger.abandon(a.waiter); lease != nil {
			p.Fatalf("request %d had a slot on %s", a.name, lease.Builder)
		}
	})
}

// wait lets time pass until something ends.
func (p *play) wait() {
	until := p.model.next(time.Now())
	if until.IsZero() {
		return
	}
	time.Sleep(time.Until(until))
	synctest.Wait()
	p.model.pass(time.Now())
}

func (p *play) check() {
	p.Helper()
	for _, a := range p.all {
		if a.ended || a.lease != nil {
			continue
		}
		got := ""
		select {
		case a.lease = <-a.waiter.granted:
			got = a.lease.Builder
		default:
		}
		if got != a.builder {
			p.Fatalf("request %d of %s is on %q, want %q", a.name, a.share, got, a.builder)
		}
	}
	s := p.model.snapshot(time.Now())
	if diff := cmp.Diff(s, p.ledger.Snapshot(), cmp.Comparer(func(a, b []Builder) bool {
		return cmp.Equal(a, b) || len(a)+len(b) == 0
	})); diff != "" {
		p.Fatalf("snapshot (-want +got):\n%s", diff)
	}
	status := p.ledger.Status()
	if len(status.Queue) != len(p.model.queue) || status.Waiting != len(p.model.queue) {
		p.Fatalf("%d of %d listed, want %d", len(status.Queue), status.Waiting, len(p.model.queue))
	}
	for i, a := range p.model.queue {
		got := status.Queue[i]
		if want := p.model.ahead(s, a); got.Waiting.Ahead != want {
			p.Fatalf("request %d of %s has %d ahead, want %d", a.name, a.share, got.Waiting.Ahead, want)
		}
		if i, ok := Prospect(s, a.request); ok {
			if id, _ := p.ledger.Prospect(a.request); id != s.Builders[i].ID {
				p.Fatalf("prospect %s, want %s", id, s.Builders[i].ID)
			}
		}
	}
}

// end lets everybody leave; then nothing may be left.
func (p *play) end() {
	for _, a := range p.all {
		switch {
		case a.ended:
		case a.lease != nil:
			a.lease.Release()
		default:
			a.ended = true
			if lease, _ := p.ledger.abandon(a.waiter); lease != nil {
				lease.Release()
			}
		}
	}
	time.Sleep(time.Hour)
	synctest.Wait()
	l := p.ledger
	if len(l.taken) > 0 || l.Waiting() > 0 || len(l.queue.needs) > 0 || len(l.queue.clients) > 0 {
		p.Errorf("left over: slots %v, %d requests, %d needs, %d clients",
			l.taken, l.Waiting(), len(l.queue.needs), len(l.queue.clients))
	}
}
