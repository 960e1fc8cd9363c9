// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// A builder that is cordoned or taken off the list gets no new builds and finishes what
// it runs.
func TestBuilderThatIsTakenAway(t *testing.T) {
	tests := map[string]func(r *rig, one, two *machine){
		"cordoned": func(r *rig, one, two *machine) {
			one.endpoint.Cordon = &inventory.Cordon{Reason: "disk swap"}
			r.use(one, two)
		},
		"gone from the file": func(r *rig, one, two *machine) { r.use(two) },
	}
	for name, take := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one := newMachine(t, "one", minutes(nil), slots(8))
				two := newMachine(t, "two", minutes(nil))
				r := newRig(t, rigOptions{builders: []*machine{one, two}})
				running, next, last := r.connect(1, "x86_64-linux.0"), r.connect(2, "x86_64-linux.1"), r.connect(3, "x86_64-linux.2")
				d := newDerivation("running")
				first := running.inBackground(t.Context(), d)
				time.Sleep(time.Second)
				take(r, one, two)
				began := time.Now()
				others := []<-chan buildOutcome{next.inBackground(t.Context(), newDerivation("next")), last.inBackground(t.Context(), newDerivation("last"))}
				if got := <-first; got.err != nil || !got.Status.Success() {
					t.Errorf("running build: %+v", got)
				}
				running.fetch(d.Outputs[0].Path)
				for _, o := range others {
					if got := <-o; got.err != nil {
						t.Error(got.err)
					}
				}
				if took := time.Since(began); took < 2*time.Minute {
					t.Errorf("two builds on the slot that is left took %v", took)
				}
				if got := one.Builds(); !slices.Equal(got, []string{d.path}) {
					t.Errorf("the builder that was taken away built %v", got)
				}
			})
		})
	}
}

// A builder that gives no further session finishes what it runs, large outputs included.
func TestLargeOutputOfBuilderThatIsTakenAway(t *testing.T) {
	tests := map[string]func(r *rig, one, two *machine){
		"gone from the file": func(r *rig, _, two *machine) { r.use(two) },
		"down, but for the build": func(r *rig, one, _ *machine) {
			one.mu.Lock()
			one.refuse = errDown
			one.mu.Unlock()
			r.connect(2, "x86_64-linux.1").ask(false, newFile("a", "A")) // it will not answer
			time.Sleep(time.Minute)
			if b := r.ledger.Snapshot().Builders[0]; b.Down == "" {
				r.t.Errorf("%s is not down", b.ID)
			}
		},
	}
	for name, take := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				finish := make(chan struct{})
				one := newMachine(t, "one", daemontest.Options{
					Before: on(daemon.OpQueryValidPaths, after(time.Hour)),
					Build: func(ctx context.Context, b *daemontest.Build) *daemon.BuildResult {
						<-finish
						return sized(inlineOutput+1)(ctx, b)
					},
				}, slots(8))
				two := newMachine(t, "two", daemontest.Options{})
				r := newRig(t, rigOptions{builders: []*machine{one, two}, spool: 1 << 30})
				c := r.connect(1, "x86_64-linux.0")
				d := newDerivation("out")
				built := c.inBackground(t.Context(), d)
				time.Sleep(time.Second)
				take(r, one, two)
				close(finish)
				if got := <-built; got.err != nil || !got.Status.Success() {
					t.Fatalf("%+v", got)
				}
				if n := len(c.fetch(d.Outputs[0].Path)); n <= inlineOutput || len(two.Builds()) != 0 {
					t.Errorf("%d bytes of output, %d builds elsewhere", n, len(two.Builds()))
				}
			})
		})
	}
}

// A build whose builder is lost while the dispatcher shuts down is not begun again.
func TestLossWhileShuttingDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newMachine(t, "one", minutes(nil), slots(8))
		two := newMachine(t, "two", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{one, two}})
		built := r.connect(1, "x86_64-linux.0").inBackground(t.Context(), newDerivation("out"))
		time.Sleep(time.Second)
		down := make(chan error, 1)
		go func() { down <- r.server.Shutdown(context.Background()) }()
		synctest.Wait()
		if !r.server.Status().Draining {
			t.Error("not draining")
		}
		one.down()
		got := <-built
		if got.err == nil || !strings.Contains(got.err.Error(), "shutting down") || !strings.Contains(got.err.Error(), "tried before: builder b/one") {
			t.Errorf("error = %v", got.err)
		}
		if err := <-down; err != nil {
			t.Error(err)
		}
	})
}

// Builds that run when the dispatcher shuts down finish, for every client that follows.
func TestShutdownFinishesSharedBuilds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", minutes(nil))
		r := newRig(t, rigOptions{builders: []*machine{m}})
		d := newDerivation("out")
		one, two := r.connect(1, "x86_64-linux.0"), r.connect(2, "x86_64-linux.1")
		first := one.inBackground(t.Context(), d)
		synctest.Wait()
		second := two.inBackground(t.Context(), d)
		time.Sleep(time.Second)
		down := make(chan error, 1)
		began := time.Now()
		go func() { down <- r.server.Shutdown(context.Background()) }()
		for i, o := range []<-chan buildOutcome{first, second} {
			if got := <-o; got.err != nil || !got.Status.Success() {
				t.Errorf("client %d: %+v", i, got)
			}
		}
		one.fetch(d.Outputs[0].Path)
		two.fetch(d.Outputs[0].Path)
		if err := <-down; err != nil || time.Since(began) > time.Minute {
			t.Errorf("Shutdown: %v after %v", err, time.Since(began))
		}
	})
}

// A build that was to be tried elsewhere when the dispatcher shuts down ends as it has
// failed.
func TestFailureWhileShuttingDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newMachine(t, "one", minutes(&daemon.BuildResult{Status: daemon.StatusTransientFailure, ErrorMessage: "it rains"}), slots(8))
		r := newRig(t, rigOptions{builders: []*machine{one, newMachine(t, "two", daemontest.Options{})}})
		built := r.connect(1, "x86_64-linux.0").inBackground(t.Context(), newDerivation("out"))
		time.Sleep(time.Second)
		down := make(chan error, 1)
		go func() { down <- r.server.Shutdown(context.Background()) }()
		if got := <-built; got.err != nil || got.ErrorMessage != "it rains (on builder b/one)" {
			t.Errorf("result = %+v", got)
		}
		if err := <-down; err != nil {
			t.Error(err)
		}
	})
}
