// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func hold(t *testing.T, f *Fleet, paths ...string) *Hold {
	t.Helper()
	hd, err := f.Hold(t.Context(), "b/one", paths)
	if err != nil {
		t.Fatal(err)
	}
	return hd
}

// asked counts operations of a kind.
func asked(m *machine, op daemon.Operation) int {
	n := 0
	for _, other := range m.Operations() {
		if other == op {
			n++
		}
	}
	return n
}

func TestHoldKeepsPathsFromCollection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.AddFile(pathA, []byte("a"))
		m.AddFile(pathB, []byte("b"))
		f, _ := newFleet(t, m)
		hd := hold(t, f, pathA, pathC, "/etc/passwd")
		if !hd.Has(pathA) || hd.Has(pathB) || hd.Has(pathC) || hd.Has("/etc/passwd") {
			t.Error("want the hold to have the first path only")
		}
		if diff := cmp.Diff([]string{pathB}, m.Collect()); diff != "" {
			t.Errorf("collected (-want +got):\n%s", diff)
		}
		// What was not there is kept once it comes, and found when asked for again.
		m.AddFile(pathC, []byte("c"))
		if got := m.Collect(); got != nil {
			t.Errorf("collected %v", got)
		}
		if err := hd.Add(t.Context(), []string{pathA, pathC}); err != nil || !hd.Has(pathC) {
			t.Errorf("after it was added: %v, %v", hd.Has(pathC), err)
		}
		infos, err := hd.Infos(t.Context(), []string{pathA, pathB, pathC})
		if err != nil || len(infos) != 2 || infos[pathA].Path != pathA || infos[pathC].NARSize == 0 {
			t.Errorf("infos %v, %v", infos, err)
		}
		hd.Release()
		hd.Release()
		if hd.Has(pathA) {
			t.Error("a released hold has nothing, and loses nothing")
		}
		time.Sleep(keeperAge + time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]string{pathA, pathC}, m.Collect()); diff != "" {
			t.Errorf("collected after the release (-want +got):\n%s", diff)
		}
	})
}

// A hold may be released while somebody else asks with it. That must not keep a session,
// and what it holds, for ever.
func TestHoldIsReleasedWhileItIsUsed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{Before: func(_ context.Context, c daemontest.Call) error {
			if c.Request.Operation() == daemon.OpQueryValidPaths {
				time.Sleep(time.Second)
			}
			return nil
		}})
		m.AddFile(pathA, []byte("a"))
		m.AddFile(pathB, []byte("b"))
		f, _ := newFleet(t, m)
		hd := hold(t, f)
		asked := make(chan error)
		go func() { asked <- hd.Add(t.Context(), []string{pathA}) }()
		synctest.Wait()
		hd.Release()
		if err := <-asked; err != nil || hd.Has(pathA) {
			t.Errorf("question under way: %v, %v", hd.Has(pathA), err)
		}
		if err := hd.Add(t.Context(), []string{pathB}); err != nil || hd.Has(pathB) {
			t.Errorf("question after the release: %v, %v", hd.Has(pathB), err)
		}
		time.Sleep(2 * keeperAge)
		if n := f.Stats()[0].Keepers; n != 0 {
			t.Errorf("%d keepers that nobody needs", n)
		}
	})
}

func TestAnswersAreRemembered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.AddFile(pathA, []byte("a"))
		f, _ := newFleet(t, m)
		if f.Known("b/one")(pathA) || f.Known("b/none")(pathA) {
			t.Error("known before anything was asked")
		}
		for range 3 {
			defer hold(t, f, pathA).Release()
		}
		if n := asked(m, daemon.OpQueryValidPaths); n != 1 {
			t.Errorf("asked %d times for what is there, want 1", n)
		}
		if known := f.Known("b/one"); !known(pathA) || known(pathB) {
			t.Error("want the first path to be known, and not the second")
		}
		for range 3 {
			defer hold(t, f, pathB).Release()
		}
		if n := asked(m, daemon.OpQueryValidPaths); n != 4 {
			t.Errorf("asked %d times, want what is not there to be asked for each time", n)
		}
		if n := asked(m, daemon.OpQueryPathInfo); n != 0 {
			t.Errorf("asked %d times for a path info: a daemon remembers what it has not", n)
		}
		if n := m.Sessions(); n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
		f.Doubt("b/one")
		if f.Known("b/one")(pathA) {
			t.Error("known though in doubt")
		}
		defer hold(t, f, pathA).Release()
		if n := m.Sessions(); n != 2 {
			t.Errorf("%d sessions, want another one after the doubt", n)
		}
	})
}

func TestConcurrentQuestionsShareAFlight(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{Before: func(_ context.Context, c daemontest.Call) error {
			if c.Request.Operation() == daemon.OpQueryValidPaths {
				time.Sleep(time.Second)
			}
			return nil
		}})
		m.AddFile(pathA, []byte("a"))
		f, _ := newFleet(t, m)
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				time.Sleep(time.Duration(i%2) * time.Millisecond)
				hd, err := f.Hold(t.Context(), "b/one", []string{pathA, pathB})
				if err != nil || !hd.Has(pathA) || hd.Has(pathB) {
					t.Errorf("hold: %v", err)
					return
				}
				hd.Release()
			})
		}
		wg.Wait()
		// Those that came while the first was under way ask for what was missing.
		if n := asked(m, daemon.OpQueryValidPaths); n != 2 {
			t.Errorf("%d flights, want 2", n)
		}
		if n := asked(m, daemon.OpAddTempRoot); n != 3 {
			t.Errorf("%d temporary roots, want 3", n)
		}
	})
}

// Who no longer waits does not spoil the answer for the others.
func TestImpatientQuestion(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{Before: func(_ context.Context, c daemontest.Call) error {
			time.Sleep(time.Second)
			return nil
		}})
		m.AddFile(pathA, []byte("a"))
		f, _ := newFleet(t, m)
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := f.Hold(impatient, "b/one", []string{pathA}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v", err)
		}
		hd := hold(t, f, pathA)
		defer hd.Release()
		if !hd.Has(pathA) || asked(m, daemon.OpQueryValidPaths) != 1 {
			t.Errorf("asked %d times, want 1", asked(m, daemon.OpQueryValidPaths))
		}
	})
}

func TestBelieve(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.AddFile(pathA, []byte("a"))
		f, _ := newFleet(t, m)
		f.Believe("b/none", []string{pathA})
		f.Believe("b/one", []string{pathA, pathB})
		if known := f.Known("b/one"); !known(pathA) || !known(pathB) {
			t.Error("what is believed must be known at once")
		}
		synctest.Wait()
		if known := f.Known("b/one"); !known(pathA) || known(pathB) {
			t.Error("what the builder has denied must not be known")
		}
		if got := m.Collect(); got != nil {
			t.Errorf("collected %v", got)
		}
		defer hold(t, f, pathA).Release()
		if n := asked(m, daemon.OpQueryValidPaths); n != 1 {
			t.Errorf("asked %d times, want 1", n)
		}
	})
}

func TestHoldOfNoBuilder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		if _, err := f.Hold(t.Context(), "b/none", []string{pathA}); err == nil {
			t.Error("held")
		}
		m.set(errCut)
		_, err := f.Hold(t.Context(), "b/one", []string{pathA})
		lost(t, err, errCut)
		synctest.Wait()
		if got := f.Stats()[0].Keepers; got != 0 {
			t.Errorf("%d keepers", got)
		}
	})
}

func TestHoldOutlivesTheBuildersEntry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.AddFile(pathA, []byte("a"))
		f, _ := newFleet(t, m)
		hd := hold(t, f, pathA)
		f.Update(document())
		synctest.Wait()
		if !hd.Has(pathA) || m.Collect() != nil {
			t.Error("a hold on a builder that was removed must last")
		}
		hd.Release()
		synctest.Wait()
		if _, open := m.counts(); open != 0 {
			t.Errorf("%d connections are open", open)
		}
	})
}
