// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// settled fails if a request waits that could run, or if a builder has more
// builds than slots. It may be asked at any time: the ledger leaves nothing
// undone when it gives its lock away.
func settled(l *Local) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	for _, b := range s.Builders {
		if b.Running > b.Slots || b.Orphaned > b.Running || b.Orphaned < 0 {
			return fmt.Errorf("%s has %d of %d slots taken, %d by orphans", b.ID, b.Running, b.Slots, b.Orphaned)
		}
	}
	for _, w := range l.queue.first(l.queue.waiting) {
		if i, ok := Place(s, w.request); ok {
			return fmt.Errorf("a request for %s of %q waits although %s is free", w.request.Class, w.request.Client, s.Builders[i].ID)
		}
	}
	return nil
}

// storm is many clients that use one ledger in every way at once.
type storm struct {
	*testing.T
	ledger   *Local
	builders []Builder
	mu       sync.Mutex
	counts   map[string]int // slots that are really in use
}

func (s *storm) count(id string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[id] += n
	i := slices.IndexFunc(s.builders, func(b Builder) bool { return b.ID == id })
	if s.counts[id] > s.builders[i].Slots {
		s.Errorf("%d builds on %s, which has %d slots", s.counts[id], id, s.builders[i].Slots)
	}
}

// client asks for slots, is now and then impatient and ends its leases in one
// of the ways there are.
func (s *storm) client(random *rand.Rand, name string) {
	for range 60 {
		ctx, cancel := context.WithCancel(s.Context())
		if random.IntN(3) == 0 {
			time.AfterFunc(time.Duration(random.IntN(200))*time.Microsecond, cancel)
		}
		r := randomRequest(random, len(s.builders))
		r.Class, r.Client = []Class{anyLinux.Class, Need("x86_64-linux", []string{"kvm"})}[random.IntN(2)], name
		lease, err := s.ledger.Acquire(ctx, r, func(Waiting) {})
		if err == nil {
			s.count(lease.Builder, 1)
			s.count(lease.Builder, -1)
			go lease.Release()
			if random.IntN(4) == 0 {
				lease.Orphan(time.Duration(random.IntN(500)) * time.Microsecond)
			}
			lease.Release()
		}
		cancel()
	}
}

// TestNothingIsLostUnderLoad has many requests come, go, get lost and give up
// while the builders change, and checks all the time that no builder has too
// many builds and that nobody waits who could run.
func TestNothingIsLostUnderLoad(t *testing.T) {
	t.Parallel()
	kvm := func(b *Builder) { b.Supported = []string{"kvm"} }
	s := &storm{
		T: t, ledger: NewLocal(LocalOptions{Interval: time.Millisecond}), counts: map[string]int{},
		builders: []Builder{linux("b0", slots(1)), linux("b1", slots(3), kvm), linux("b2", slots(2), speed(3))},
	}
	s.ledger.Update(s.builders)
	var clients, others sync.WaitGroup
	var stop atomic.Bool
	for i := range 40 {
		clients.Go(func() { s.client(rand.New(rand.NewPCG(1, uint64(i))), fmt.Sprint(i%7)) })
	}
	others.Go(func() {
		for i := 0; !stop.Load(); i++ {
			builders := slices.Clone(s.builders)
			switch i % 5 {
			case 1:
				builders[1].Down = "unreachable"
			case 2:
				builders[2].Cordon = &Cordon{Until: time.Now().Add(100 * time.Microsecond)}
			case 3:
				builders = builders[1:]
			}
			s.ledger.Update(builders)
		}
	})
	others.Go(func() {
		for !stop.Load() {
			if err := settled(s.ledger); err != nil {
				t.Error(err)
				return
			}
			s.ledger.Status()
		}
	})
	clients.Wait()
	stop.Store(true)
	others.Wait()
	// All slots come back, orphans' too.
	s.ledger.Update(s.builders)
	for range 6 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := s.ledger.Acquire(ctx, anyLinux, func(Waiting) {}); err != nil {
			t.Fatalf("a slot was lost: %v", err)
		}
		cancel()
	}
}

// TestManyBuildersAreChosenAsByPlace has more builders than fit into one word
// of a set.
func TestManyBuildersAreChosenAsByPlace(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 9))
	l := NewLocal(LocalOptions{})
	l.Update(randomBuilders(random, 300))
	for range 400 {
		r := randomRequest(random, 300)
		s := l.Snapshot()
		want, ok := Place(s, r)
		w := l.ask(r)
		if !ok {
			continue
		}
		select {
		case lease := <-w.granted:
			if lease.Builder != s.Builders[want].ID {
				t.Fatalf("%s has it, want %s", lease.Builder, s.Builders[want].ID)
			}
		default:
			t.Fatalf("waits, want %s", s.Builders[want].ID)
		}
	}
	if err := settled(l); err != nil {
		t.Error(err)
	}
}

// TestNeedsAreForgotten keeps the ledger small: derivations can ask for any
// features.
func TestNeedsAreForgotten(t *testing.T) {
	t.Parallel()
	l := NewLocal(LocalOptions{})
	l.Update([]Builder{linux("a")})
	for i := range 10 * maxIdleNeeds {
		l.Prospect(Request{Class: Need("x86_64-linux", []string{fmt.Sprint("f", i)})})
	}
	if n := len(l.queue.known); n > maxIdleNeeds+1 {
		t.Errorf("%d needs are remembered that nothing waits for", n)
	}
}
