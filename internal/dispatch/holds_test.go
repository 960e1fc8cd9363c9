// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// collect runs the garbage collectors of machines.
func collect(machines ...*machine) (removed []string) {
	for _, m := range machines {
		removed = append(removed, m.Collect()...)
	}
	return removed
}

// Whenever the garbage collectors run: what a client was told is there can be had for
// its build, without asking it again.
func TestGarbageCollection(t *testing.T) {
	tests := map[string]func(t *testing.T, r *rig, c *client, one, two *machine, build func()){
		"between answer and build": func(_ *testing.T, _ *rig, _ *client, one, two *machine, build func()) {
			collect(one, two)
			build()
		},
		"while the build waits, for long": func(_ *testing.T, r *rig, _ *client, one, two *machine, build func()) {
			one.endpoint.Cordon, two.endpoint.Cordon = &inventory.Cordon{}, &inventory.Cordon{}
			r.use(one, two)
			go func() {
				for range 60 {
					time.Sleep(10 * time.Second)
					collect(one, two)
				}
				one.endpoint.Cordon = nil
				r.use(one, two)
			}()
			build()
		},
		"and one of the builders is lost": func(_ *testing.T, r *rig, _ *client, one, two *machine, build func()) {
			third := newMachine(r.t, "third", daemontest.Options{}, slots(8))
			one.down()
			two.cordon()
			collect(one, two)
			r.use(one, two, third)
			build()
		},
		"while the client takes its time": func(_ *testing.T, _ *rig, _ *client, one, two *machine, build func()) {
			for range 60 {
				time.Sleep(10 * time.Second)
				collect(one, two)
			}
			build()
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lib := newFile("lib", "L")
				a := newFile("a", "A", lib.info.Path)
				one, two := newMachine(t, "one", daemontest.Options{}).has(lib, a), newMachine(t, "two", daemontest.Options{}).has(lib, a)
				r := newRig(t, rigOptions{builders: []*machine{one, two}})
				c := r.connect(1, "x86_64-linux.0")
				if got := c.ask(false, lib, a); got != "liba" {
					t.Fatalf("there: %q", got)
				}
				test(t, r, c, one, two, func() { c.mustBuild(newDerivation("out", a)) })
				c.Close()
				synctest.Wait()
				time.Sleep(5 * time.Minute)
				if removed := collect(two); len(removed) < 2 {
					t.Errorf("after the build only %v could be collected", removed)
				}
			})
		})
	}
}

// What was sent over a connection of its own stays when that ends.
func TestLargeInputsAreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m *machine
		m = newMachine(t, "one", daemontest.Options{Before: on(daemon.OpBuildDerivation, func(context.Context) error {
			collect(m)
			return nil
		})})
		r := newRig(t, rigOptions{builders: []*machine{m}, spool: 1 << 30})
		c := r.connect(1, "x86_64-linux.0")
		small := newFile("small", "S")
		large := newFile("large", strings.Repeat("L", 2*smallTransfer), small.info.Path)
		c.upload(small, large)
		c.mustBuild(newDerivation("out", large))
		if n := len(m.Builds()); n != 1 {
			t.Errorf("%d builds, want one", n)
		}
	})
}

// Builds are equal also where their inputs are on builders only.
func TestInputHashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newFile("a", "A"), newFile("b", "B")
		r := newRig(t, rigOptions{builders: []*machine{newMachine(t, "one", daemontest.Options{}).has(a)}})
		s := newSupplier(r.server, r.server.log, classOf(t), nil, nil)
		defer s.release()
		s.locate(t.Context(), []string{a.info.Path, b.info.Path}, false)
		got, err := s.inputHashes(t.Context(), []string{a.info.Path})
		if err != nil || got[a.info.Path] != a.info.NARHash {
			t.Errorf("hashes %v, %v", got, err)
		}
		if got, err := s.inputHashes(t.Context(), []string{a.info.Path, b.info.Path}); !errors.Is(err, errUnknownHash) {
			t.Errorf("hashes with one that nobody has: %v, %v", got, err)
		}
	})
}

func TestHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newFile("a", "A"), newFile("b", "B")
		one := newMachine(t, "one", daemontest.Options{}).has(a)
		r := newRig(t, rigOptions{builders: []*machine{one}})
		h := newHolds(r.server.opts.Builders)
		paths := []string{a.info.Path, b.info.Path}
		if got := h.unasked(one.id, paths); len(got) != 2 || h.has(one.id, a.info.Path) {
			t.Errorf("not asked: %v", got)
		}
		if err := h.ask(t.Context(), one.id, paths); err != nil {
			t.Fatal(err)
		}
		if got := h.unasked(one.id, paths); len(got) != 0 {
			t.Errorf("not asked: %v", got)
		}
		if got := h.holders([]string{"b/other", one.id}, a.info.Path); len(got) != 1 || len(h.holders([]string{one.id}, b.info.Path)) != 0 {
			t.Errorf("holders: %v", got)
		}
		h.doubt(one.id)
		if got := h.unasked(one.id, paths); len(got) != 2 || h.has(one.id, a.info.Path) {
			t.Errorf("after doubt, not asked: %v", got)
		}
		one.down()
		if err := h.ask(t.Context(), one.id, paths); err == nil {
			t.Error("a builder that is down has answered")
		}
		if err := h.ask(t.Context(), "b/unknown", paths); err == nil {
			t.Error("an unknown builder has answered")
		}
		h.release()
		if err := h.ask(t.Context(), one.id, paths); !errors.Is(err, errReleased) {
			t.Errorf("after release: %v", err)
		}
	})
}

// An input that only a builder has which is down is waited for, with a word about it.
func TestInputOfABuilderThatComesBack(t *testing.T) {
	tests := map[string]struct {
		away time.Duration
		ok   bool
	}{
		"soon":  {20 * time.Second, true},
		"later": {10 * time.Minute, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newFile("a", "A")
				one, two := newMachine(t, "one", daemontest.Options{}).has(a), newMachine(t, "two", daemontest.Options{}).has(a)
				r := newRig(t, rigOptions{builders: []*machine{one, two}})
				c := r.connect(1, "x86_64-linux.0")
				if got := c.ask(false, a); got != "a" {
					t.Fatalf("there: %q", got)
				}
				r.use(one, two, newMachine(t, "large", daemontest.Options{}, slots(8)))
				one.down()
				two.down()
				defer time.AfterFunc(tc.away, two.up).Stop()
				_, err := c.build(newDerivation("out", a))
				if (err == nil) != tc.ok || err != nil && !strings.Contains(err.Error(), "start the build again") {
					t.Errorf("error = %v", err)
				}
				if lines := strings.Join(c.said.lines(), "\n"); !strings.Contains(lines, "waiting for b/one, b/two to come back") {
					t.Errorf("lines:\n%s", lines)
				}
			})
		})
	}
}
