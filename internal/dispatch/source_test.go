// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// What the client was told is there must be had for its build, though the builders
// that have it are not at their best any more.
func TestInputFromTroubledBuilders(t *testing.T) {
	tests := map[string]struct {
		// one and two happen on the two builders that have the input, once the
		// client was told that they have it.
		one, two map[daemon.Operation]func(context.Context) error
	}{
		"slow": {
			one: map[daemon.Operation]func(context.Context) error{daemon.OpNARFromPath: after(5 * time.Second)},
			two: map[daemon.Operation]func(context.Context) error{daemon.OpNARFromPath: after(5 * time.Second)},
		},
		"well": {},
		"one hangs up": {
			one: map[daemon.Operation]func(context.Context) error{daemon.OpNARFromPath: daemontest.HangUp},
			two: map[daemon.Operation]func(context.Context) error{daemon.OpQueryValidPaths: after(time.Second)},
		},
		"one has lost it": {
			one: map[daemon.Operation]func(context.Context) error{daemon.OpNARFromPath: daemontest.Refuse("not valid")},
			two: map[daemon.Operation]func(context.Context) error{daemon.OpQueryValidPaths: after(time.Second)},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var begun atomic.Bool
				troubled := func(do map[daemon.Operation]func(context.Context) error) daemontest.Options {
					return daemontest.Options{Before: func(ctx context.Context, c daemontest.Call) error {
						if f := do[c.Request.Operation()]; f != nil && begun.Load() {
							return f(ctx)
						}
						return nil
					}}
				}
				a := newFile("a", "A")
				one, two := newMachine(t, "one", troubled(tc.one)).has(a), newMachine(t, "two", troubled(tc.two)).has(a)
				large := newMachine(t, "large", daemontest.Options{}, slots(8))
				r := newRig(t, rigOptions{builders: []*machine{one, two, large}})
				c := r.connect(1, "x86_64-linux.0")
				if got := c.ask(false, a); got != "a" {
					t.Fatalf("there: %q", got)
				}
				begun.Store(true)
				// They would get the build, because they have its input.
				one.cordon()
				two.cordon()
				r.use(one, two, large)
				c.mustBuild(newDerivation("out", a))
				if lines := c.said.lines(); len(lines) != 0 || len(large.Builds()) != 1 {
					t.Errorf("%d builds on the large builder, lines %q", len(large.Builds()), lines)
				}
			})
		})
	}
}

// cordon keeps builds from the machine once it is used again.
func (m *machine) cordon() { m.endpoint.Cordon = &inventory.Cordon{Reason: "disk swap"} }

// after does nothing but take time.
func after(d time.Duration) func(context.Context) error {
	return func(context.Context) error {
		time.Sleep(d)
		return nil
	}
}

// repeating answers every question twice and with more than was asked.
type repeating struct{ Builder }

func (b repeating) QuerySubstitutablePaths(_ context.Context, paths []string) ([]string, error) {
	return slices.Concat(paths, paths, []string{storePath("other")}), nil
}

func (repeating) Reuse() {}
func (repeating) Close() {}

// anyBuilders has methods of its own for what a test needs.
type anyBuilders = Builders

type repeatingBuilders struct{ anyBuilders }

func (repeatingBuilders) Open(context.Context, string) (Builder, error) { return repeating{}, nil }

func TestRepetitionsDoNotCount(t *testing.T) {
	t.Parallel()
	s := &Server{opts: Options{Builders: repeatingBuilders{}}}
	path := storePath("a")
	if got := s.whoSubstitutes(t.Context(), []string{"one"}, []string{path, storePath("b")}); len(got) != 2 || !got[path] {
		t.Errorf("substitutable: %v", got)
	}
}

func TestPathsNamedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newFile("a", "A"), newFile("b", "B")
		m := newMachine(t, "one", daemontest.Options{}).has(a)
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		if got := c.ask(false, a, b, a, b); got != "a" {
			t.Errorf("there: %q", got)
		}
		if err := c.send(b, b); err != nil {
			t.Error(err)
		}
		c.mustBuild(newDerivation("out", a, b, b, a))
		if usage := r.spool.Usage(); usage.Paths != 2 { // b and the output
			t.Errorf("spool: %+v", usage)
		}
	})
}

// Many inputs from one builder take one session there, not one each.
func TestSessionsOfDonorsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inputs []file
		for i := range 20 {
			inputs = append(inputs, newFile(fmt.Sprint("input", i), "I"))
		}
		one, two := newMachine(t, "one", daemontest.Options{}).has(inputs...), newMachine(t, "two", daemontest.Options{}).has(inputs...)
		r := newRig(t, rigOptions{builders: []*machine{one, two, newMachine(t, "large", daemontest.Options{}, slots(8))}})
		c := r.connect(1, "x86_64-linux.0")
		if sent := c.upload(inputs...); len(sent) != 0 {
			t.Fatalf("sent %v", sent)
		}
		c.mustBuild(newDerivation("out", inputs...))
		// One for each of the two questions, and one for the inputs.
		if one.Sessions() > 3 || two.Sessions() > 3 {
			t.Errorf("%d and %d sessions", one.Sessions(), two.Sessions())
		}
	})
}
