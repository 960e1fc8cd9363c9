// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func TestKeeperRotation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.AddFile(pathA, []byte("a"))
		f, _ := newFleet(t, m)
		old := hold(t, f, pathA)
		time.Sleep(keeperAge)
		synctest.Wait()
		if f.Known("b/one")(pathA) {
			t.Error("known by a session that takes no more paths")
		}
		fresh := hold(t, f, pathA)
		if got := f.Stats()[0].Keepers; got != 2 || m.Sessions() != 2 {
			t.Errorf("%d keepers, %d sessions, want 2", got, m.Sessions())
		}
		if !old.Has(pathA) || !fresh.Has(pathA) {
			t.Error("both holds must have the path")
		}
		if err := old.Add(t.Context(), []string{pathA}); err != nil || asked(m, daemon.OpQueryValidPaths) != 2 {
			t.Errorf("%v: what an old session holds must not be asked again", err)
		}
		old.Release()
		synctest.Wait()
		if got := f.Stats()[0].Keepers; got != 1 {
			t.Errorf("%d keepers after the last hold on the old one was released, want 1", got)
		}
		if got := m.Collect(); got != nil {
			t.Errorf("collected %v", got)
		}
		fresh.Release()
		time.Sleep(keeperAge)
		synctest.Wait()
		if got := f.Stats()[0].Keepers; got != 0 {
			t.Errorf("%d keepers that nobody needs", got)
		}
	})
}

func TestKeeperOfManyPaths(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		var paths []string
		for i := range keeperPaths {
			paths = append(paths, fmt.Sprintf("/nix/store/%032d-x", i))
		}
		defer hold(t, f, paths...).Release()
		defer hold(t, f, pathA).Release()
		if got := f.Stats()[0].Keepers; got != 2 {
			t.Errorf("%d keepers, want a second one", got)
		}
	})
}

// A client may ask for more paths than a builder answers for in its time. That does not
// make the builder one that is silent.
func TestQuestionForVeryManyPaths(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{Before: func(_ context.Context, c daemontest.Call) error {
			if r, ok := c.Request.(*daemon.QueryValidPaths); ok {
				time.Sleep(time.Duration(len(r.Paths)) * time.Millisecond)
			}
			return nil
		}})
		f, n := newFleet(t, m)
		paths := make([]string, 4*pathsPerFlight)
		for i := range paths {
			paths[i] = fmt.Sprintf("/nix/store/%032d-x", i)
		}
		last := paths[len(paths)-1]
		m.AddFile(last, []byte("x"))
		hd := hold(t, f, paths...)
		defer hd.Release()
		if infos, err := hd.Infos(t.Context(), []string{last}); err != nil || len(infos) != 1 || !hd.Has(last) {
			t.Errorf("the last path: %v, %v", infos, err)
		}
		if down := n.down(t, "b/one"); down != "" {
			t.Errorf("the builder is down: %s", down)
		}
	})
}

func TestLostKeeper(t *testing.T) {
	ends := map[string]func(*machine, *Fleet){
		"its connection was lost": func(m *machine, _ *Fleet) { m.cut() },
		"its daemon has ended":    func(m *machine, _ *Fleet) { m.endStreams() },
		"the fleet was closed":    func(_ *machine, f *Fleet) { f.Close() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := newMachine(t, daemontest.Options{})
				m.lasting = true
				m.AddFile(pathA, []byte("a"))
				f, _ := newFleet(t, m)
				hd := hold(t, f, pathA)
				defer hd.Release()
				end(m, f)
				synctest.Wait()
				if hd.Has(pathA) {
					t.Error("a lost hold must have nothing and say so")
				}
				if f.Known("b/one")(pathA) {
					t.Error("known by a session that has ended")
				}
				if _, err := hd.Infos(t.Context(), []string{pathA}); err == nil {
					t.Error("infos of a lost hold")
				}
				time.Sleep(time.Second) // it is connected to again
				err := hd.Add(t.Context(), []string{pathA})
				if open := !strings.HasPrefix(name, "the fleet"); (err == nil) != open || hd.Has(pathA) != open {
					t.Errorf("asked again: %v, %v", hd.Has(pathA), err)
				}
			})
		})
	}
}

// A session that was lost without anybody having noticed is replaced.
func TestKeeperThatEndsUnnoticed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{Before: func(_ context.Context, c daemontest.Call) error {
			if c.Session == 1 && c.N > 2 {
				return daemontest.ErrHangUp
			}
			return nil
		}})
		m.AddFile(pathA, []byte("a"))
		m.AddFile(pathB, []byte("b"))
		f, n := newFleet(t, m)
		first := hold(t, f, pathA)
		defer first.Release()
		second := hold(t, f, pathB)
		defer second.Release()
		if !second.Has(pathB) || first.Has(pathA) {
			t.Error("want the second hold to rest on another session and the first to be lost")
		}
		if down := n.down(t, "b/one"); down != "" {
			t.Errorf("the builder is %q", down)
		}
	})
}

func TestSilentKeeper(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{Before: daemontest.At(1, daemontest.Silent)})
		f, n := newFleet(t, m)
		began := time.Now()
		_, err := f.Hold(t.Context(), "b/one", []string{pathA})
		lost(t, err, errSilent)
		var l *LostError
		if !errors.As(err, &l) || !l.Silent() || time.Since(began) != answerTimeout {
			t.Errorf("error = %v after %v, want one of silence", err, time.Since(began))
		}
		if down := n.down(t, "b/one"); down != "does not answer" {
			t.Errorf("the builder is %q", down)
		}
		if _, err := f.Hold(t.Context(), "b/one", []string{pathA}); err == nil {
			t.Error("a builder that is down was asked")
		}
	})
}

// A daemon that holds nothing is asked all the same, but not believed for longer
// than the moment.
func TestDaemonThatRefusesToHold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{Before: func(_ context.Context, c daemontest.Call) error {
			if c.Request.Operation() == daemon.OpAddTempRoot {
				return errors.New("read-only file system")
			}
			return nil
		}})
		m.AddFile(pathA, []byte("a"))
		f, _ := newFleet(t, m)
		for range 2 {
			hd := hold(t, f, pathA, pathB)
			defer hd.Release()
			if !hd.Has(pathA) || hd.Has(pathB) {
				t.Error("want what the daemon says")
			}
		}
		if f.Known("b/one")(pathA) {
			t.Error("remembered though nothing holds it")
		}
		if ops := m.Operations(); !slices.Contains(ops, daemon.OpQueryValidPaths) || m.Sessions() != 1 {
			t.Errorf("%d sessions, operations %v", m.Sessions(), ops)
		}
	})
}
