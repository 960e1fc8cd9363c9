// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package inventory

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// source is a file in memory for a follower in a bubble of synctest.
type source struct {
	mu    sync.Mutex
	now   Outcome
	reads int
}

func (s *source) set(outcome Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = outcome
}

func (s *source) read() reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	return reading{outcome: s.now}
}

func (s *source) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

func of(names ...string) Document {
	document := Document{SchemaVersion: SchemaVersion}
	for _, name := range names {
		document.Builders = append(document.Builders, small("b", name))
	}
	return document
}

// follow runs a follower over s until the test's end.
func follow(t *testing.T, s *source) (f *follower, changes chan struct{}, outcomes *[]Outcome) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	outcomes = new([]Outcome)
	f = &follower{
		opts: WatchOptions{
			Debounce: time.Second, Poll: time.Minute,
			OnRead: func(outcome Outcome) { *outcomes = append(*outcomes, outcome) },
		},
		log:       slog.New(slog.DiscardHandler),
		documents: make(chan Document),
		read:      s.read,
		watched:   func([]string) {},
	}
	changes = make(chan struct{}, 1)
	go f.run(ctx, changes)
	return f, changes, outcomes
}

func TestFollowerDeliversNewsOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{now: Outcome{Document: of("a")}}
		f, changes, _ := follow(t, s)
		if diff := cmp.Diff(of("a"), <-f.documents); diff != "" {
			t.Errorf("first document (-want +got):\n%s", diff)
		}
		changes <- struct{}{} // the same content again
		time.Sleep(2 * time.Second)
		select {
		case document := <-f.documents:
			t.Errorf("unchanged content was delivered: %v", document)
		default:
		}
		s.set(Outcome{Document: of("a", "b")})
		changes <- struct{}{}
		if diff := cmp.Diff(of("a", "b"), <-f.documents); diff != "" {
			t.Errorf("changed document (-want +got):\n%s", diff)
		}
	})
}

func TestFollowerDebounces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{now: Outcome{Document: of()}}
		f, changes, _ := follow(t, s)
		<-f.documents
		before := s.count()
		// Without a pause there is a change every 100 ms, for 10 s.
		for range 100 {
			changes <- struct{}{}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if reads := s.count() - before; reads < 8 || reads > 10 {
			t.Errorf("the file was read %d times in 10 s, want about once a second", reads)
		}
	})
}

func TestFollowerPolls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{now: Outcome{Document: of("a")}}
		f, _, _ := follow(t, s)
		<-f.documents
		s.set(Outcome{Document: of("b")})
		start := time.Now()
		if diff := cmp.Diff(of("b"), <-f.documents); diff != "" {
			t.Errorf("document (-want +got):\n%s", diff)
		}
		if waited := time.Since(start); waited != time.Minute {
			t.Errorf("a change that nobody told of was noticed after %v, want a minute", waited)
		}
	})
}

func TestFollowerGivesSlowReceiversTheNewest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{now: Outcome{Document: of("a")}}
		f, changes, _ := follow(t, s)
		for _, name := range []string{"b", "c"} {
			s.set(Outcome{Document: of(name)})
			changes <- struct{}{}
			time.Sleep(2 * time.Second)
		}
		if diff := cmp.Diff(of("c"), <-f.documents); diff != "" {
			t.Errorf("document (-want +got):\n%s", diff)
		}
	})
}

func TestFollowerKeepsTheLastGoodVersion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		s := &source{now: Outcome{Document: of("a")}}
		f, changes, outcomes := follow(t, s)
		<-f.documents
		for range 3 { // the same mistake is news once
			s.set(Outcome{Err: broken})
			changes <- struct{}{}
			time.Sleep(2 * time.Second)
		}
		s.set(Outcome{Document: of("a")})
		changes <- struct{}{}
		time.Sleep(2 * time.Second)
		select {
		case document := <-f.documents:
			t.Errorf("a document was delivered though the good one is the same: %v", document)
		default:
		}
		synctest.Wait()
		want := []Outcome{{Document: of("a")}, {Document: of("a"), Err: broken}, {Document: of("a")}}
		if diff := cmp.Diff(want, *outcomes, cmp.Comparer(func(a, b error) bool { return errors.Is(a, b) })); diff != "" {
			t.Errorf("outcomes (-want +got):\n%s", diff)
		}
	})
}

func TestFollowerDeliversAnEmptyDocument(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := follow(t, &source{now: Outcome{Document: of()}})
		if document := <-f.documents; document.SchemaVersion != SchemaVersion || len(document.Builders) != 0 {
			t.Errorf("document %v, want an empty one", document)
		}
	})
}
