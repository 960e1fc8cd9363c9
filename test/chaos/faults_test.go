// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
)

// fault is something that happens to a builder, or to the list of them, and ends.
type fault struct {
	name string
	// begin and end do it and undo it; end may be nil. They note it in the events.
	begin, end func(context.Context, *world, *builder) error
	// list is set for what happens to no builder but to their list, all for what
	// happens to every builder at once; both are called without a builder.
	list, all bool
	// long is set for what is worth lasting until the dispatcher gives the
	// builder up.
	long bool
}

// faults are dealt out in turn, so that each of them happens.
var faults = []fault{
	{name: "killed", begin: func(_ context.Context, _ *world, b *builder) error { b.kill(""); return nil }, end: revive},
	{name: "killed after a dependency", begin: killAuthor, end: revive},
	{name: "restarted", begin: func(ctx context.Context, _ *world, b *builder) error {
		b.kill("")
		return b.revive(ctx)
	}},
	{name: "all killed", all: true, long: true, begin: killAll, end: reviveAll},
	{name: "stopped", long: true,
		begin: taking((*builder).StopProcesses, "stopped, all of it"), end: giving((*builder).ContinueProcesses, "goes on")},
	{name: "daemon stopped", long: true,
		begin: taking((*builder).StopDaemon, "its daemon stopped"), end: giving((*builder).ContinueDaemon, "its daemon goes on")},
	{name: "cut off", long: true,
		begin: func(ctx context.Context, _ *world, b *builder) error { return b.cut(ctx) },
		end:   func(ctx context.Context, _ *world, b *builder) error { return b.heal(ctx) }},
	{name: "unplugged", long: true,
		begin: func(ctx context.Context, _ *world, b *builder) error {
			b.events.down(b.Name(), "unplugged")
			return b.wire.unplug(ctx)
		},
		end: func(ctx context.Context, _ *world, b *builder) error {
			b.events.up(b.Name(), "plugged in")
			return b.wire.replug(ctx)
		}},
	{name: "hung up", begin: func(ctx context.Context, _ *world, b *builder) error {
		b.events.note("%s: sessions killed", b.Name())
		return b.hangUp(ctx)
	}},
	{name: "filled up",
		begin: func(ctx context.Context, _ *world, b *builder) error {
			b.events.down(b.Name(), "filled up")
			return b.fill(ctx)
		},
		end: func(ctx context.Context, _ *world, b *builder) error {
			b.events.up(b.Name(), "has room again")
			return b.empty(ctx)
		}},
	{name: "cordoned",
		begin: func(_ context.Context, w *world, b *builder) error {
			b.events.down(b.Name(), "cordoned")
			return w.roster.cordon(b.Name(), "chaos")
		},
		end: func(_ context.Context, w *world, b *builder) error {
			b.events.up(b.Name(), "cordon over")
			return w.roster.cordon(b.Name(), "")
		}},
	{name: "off the list",
		begin: func(_ context.Context, w *world, b *builder) error {
			b.events.down(b.Name(), "off the list")
			return w.roster.drop(b.Name(), true)
		},
		end: func(_ context.Context, w *world, b *builder) error {
			b.events.up(b.Name(), "on the list again")
			return w.roster.drop(b.Name(), false)
		}},
	{name: "fewer slots", begin: slots(1), end: slots(2)},
	{name: "list shuffled", list: true, begin: func(_ context.Context, w *world, _ *builder) error {
		w.events.note("list: another order")
		return w.roster.shuffle(rand.New(rand.NewPCG(*seedFlag, 3)))
	}},
	{name: "list spoiled", list: true,
		begin: func(_ context.Context, w *world, _ *builder) error {
			w.events.note("list: only half of it")
			return w.roster.spoil()
		},
		end: func(_ context.Context, w *world, _ *builder) error {
			w.events.note("list: whole again")
			return w.roster.restore()
		}},
}

func revive(ctx context.Context, _ *world, b *builder) error { return b.revive(ctx) }

func killAll(_ context.Context, w *world, _ *builder) error {
	for _, b := range w.builders {
		b.kill("with all others")
	}
	return nil
}

func reviveAll(ctx context.Context, w *world, _ *builder) error {
	return sideBySide(len(w.builders), func(i int) error { return w.builders[i].revive(ctx) })
}

func taking(f func(*builder) error, what string) func(context.Context, *world, *builder) error {
	return func(_ context.Context, _ *world, b *builder) error {
		b.events.down(b.Name(), what)
		return f(b)
	}
}

func giving(f func(*builder) error, what string) func(context.Context, *world, *builder) error {
	return func(_ context.Context, _ *world, b *builder) error {
		b.events.up(b.Name(), what)
		return f(b)
	}
}

func slots(n int) func(context.Context, *world, *builder) error {
	return func(_ context.Context, w *world, b *builder) error {
		b.events.note("%s: %d slots", b.Name(), n)
		return w.roster.change(b.Name(), func(e *inventory.Endpoint) { e.Slots = n })
	}
}

// authorPatience bounds the wait for a builder to finish a build.
const authorPatience = 5 * time.Second

// killAuthor kills a builder as soon as it has built something that others need.
func killAuthor(ctx context.Context, w *world, b *builder) error {
	ctx, cancel := context.WithTimeout(ctx, authorPatience)
	defer cancel()
	built := make(chan string, 1)
	defer w.dispatcher.log.watch(func(r record) {
		if r.Message == builtMessage && r.Builder == b.id() {
			select {
			case built <- r.Derivation:
			default:
			}
		}
	})()
	why := "although it built nothing"
	select {
	case derivation := <-built:
		why = "after it built " + derivationName(derivation)
	case <-ctx.Done():
	}
	b.kill(why)
	return nil
}

// step is a fault of a plan.
type step struct {
	at, lasts time.Duration
	fault     fault
	builder   int // index; -1 for a fault of the list or of all
}

// pace says how close faults are to each other, and how long they last.
type pace struct {
	gap, stay time.Duration
	// far is how long some of those last that are worth it; 0 for none.
	far time.Duration
}

func paceOf(duration time.Duration) pace {
	if duration < time.Minute {
		return pace{gap: 250 * time.Millisecond, stay: 1500 * time.Millisecond}
	}
	return pace{gap: time.Second, stay: 6 * time.Second, far: 40 * time.Second}
}

// plan lays out faults for a time. At every moment it leaves at least one builder
// alone, or all are down at once and builds have to wait.
func plan(seed uint64, duration time.Duration, builders int) []step {
	random := rand.New(rand.NewPCG(seed, 1))
	p := paceOf(duration)
	var steps []step
	var deck []int
	busy := make([]time.Duration, builders+1) // until when; the last is the list's
	for at := p.gap; at < duration; at += p.gap + drawTime(random, 2*p.gap) {
		if len(deck) == 0 {
			deck = random.Perm(len(faults))
		}
		f := faults[deck[0]]
		var free []int
		for i, until := range busy[:builders] {
			if until <= at {
				free = append(free, i)
			}
		}
		if f.list && busy[builders] > at || f.all && len(free) < builders || !f.list && len(free) < 2 {
			continue
		}
		deck = deck[1:]
		s := step{at: at, fault: f, builder: -1, lasts: p.stay/4 + drawTime(random, p.stay)}
		if f.long && p.far > 0 && random.IntN(3) == 0 {
			s.lasts = p.far
		}
		var taken []int
		switch {
		case f.list:
			taken = []int{builders}
		case f.all:
			taken = free
		default:
			s.builder = free[random.IntN(len(free))]
			taken = []int{s.builder}
		}
		for _, i := range taken {
			busy[i] = at + s.lasts + p.gap
		}
		steps = append(steps, s)
	}
	return steps
}

func drawTime(random *rand.Rand, below time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(below)))
}

// carryOut makes all faults of a plan happen and returns once all is well again.
func (w *world) carryOut(ctx context.Context, steps []step) error {
	began := time.Now()
	failures := make(chan error, len(steps))
	var under sync.WaitGroup
	for _, s := range steps {
		select {
		case <-time.After(time.Until(began.Add(s.at))):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		under.Go(func() {
			if err := w.perform(ctx, s); err != nil {
				w.events.note("harness: %s: %v", s.fault.name, err)
				failures <- fmt.Errorf("fault %q: %w", s.fault.name, err)
			}
		})
	}
	under.Wait()
	close(failures)
	err := ctx.Err()
	for failure := range failures {
		err = errors.Join(err, failure)
	}
	return err
}

// perform does one fault and undoes it.
func (w *world) perform(ctx context.Context, s step) error {
	var b *builder
	for i := range w.builders {
		if i == s.builder || s.fault.all {
			w.builders[i].using.Lock()
			defer w.builders[i].using.Unlock()
		}
	}
	if s.builder >= 0 {
		b = w.builders[s.builder]
	}
	err := s.fault.begin(ctx, w, b)
	if s.fault.end == nil {
		return err
	}
	select {
	case <-time.After(s.lasts):
	case <-ctx.Done():
	}
	return errors.Join(err, s.fault.end(ctx, w, b))
}
