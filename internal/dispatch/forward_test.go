// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// classOf returns the class of plain builds.
func classOf(t *testing.T) scheduler.Class {
	t.Helper()
	c, err := classes{}.Lookup(connect.Target{Class: system})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// large returns a file that is worth a transfer of its own.
func large(name string, references ...string) file {
	return newFile(name, strings.Repeat(name[:1], 2*smallTransfer), references...)
}

// sendSlowly uploads a file with a pause in its middle.
func (c *client) sendSlowly(ctx context.Context, f file, pause time.Duration) error {
	half := len(f.nar) / 2
	return c.AddMultipleToStore(ctx, daemon.PathSource{Count: 1, Next: func() (daemon.PathInfo, io.Reader, error) {
		return f.info, io.MultiReader(bytes.NewReader(f.nar[:half]), pausing(pause), bytes.NewReader(f.nar[half:])), nil
	}}, c.said.add)
}

// uploads counts the operations 44 that a machine has got.
func (m *machine) uploads() (n int) {
	for _, op := range m.Operations() {
		if op == daemon.OpAddMultipleToStore {
			n++
		}
	}
	return n
}

// Inputs go on to the builder while the client still sends them, without a slot.
func TestInputsAreForwarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}, spool: 1 << 30})
		c := r.connect(1, "x86_64-linux.0")
		in := large("in")
		c.ask(false, in)
		sent := make(chan error)
		go func() { sent <- c.sendSlowly(t.Context(), in, time.Minute) }()
		time.Sleep(time.Second)
		if n := m.uploads(); n != 1 {
			t.Errorf("%d uploads to the builder in the middle of the client's, want 1", n)
		}
		r.noneTaken()
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		c.mustBuild(newDerivation("out", in))
		if n := m.uploads(); n != 1 {
			t.Errorf("%d uploads in all, want 1", n)
		}
	})
}

// Inputs that are on their way to a builder count as if they were there: it gets the
// build, though the other has less to do.
func TestBuildFollowsItsInputs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := daemontest.Options{Before: on(daemon.OpAddMultipleToStore, after(time.Minute))}
		machines := map[string]*machine{"b/one": newMachine(t, "one", slow, slots(2)), "b/two": newMachine(t, "two", slow, slots(2))}
		r := newRig(t, rigOptions{builders: []*machine{machines["b/one"], machines["b/two"]}, spool: 1 << 30})
		c := r.connect(1, "x86_64-linux.0")
		in := large("in")
		if err := c.send(in); err != nil {
			t.Fatal(err)
		}
		chosen, other := "b/one", "b/two"
		if machines[other].uploads() > 0 {
			chosen, other = other, chosen
		}
		busy, err := r.ledger.Acquire(t.Context(), scheduler.Request{Class: classOf(t), Exclude: []string{other}}, func(scheduler.Waiting) {})
		if err != nil {
			t.Fatal(err)
		}
		defer busy.Release()
		c.mustBuild(newDerivation("out", in))
		if got := machines[chosen].Builds(); len(got) != 1 || machines[chosen].uploads() != 1 {
			t.Errorf("%s, which is sent the inputs, built %v after %d uploads", chosen, got, machines[chosen].uploads())
		}
	})
}

// noneTaken checks that no slot is taken.
func (r *rig) noneTaken() {
	r.t.Helper()
	for _, b := range r.ledger.Snapshot().Builders {
		if b.Running != 0 {
			r.t.Errorf("%d slots of %s are taken", b.Running, b.ID)
		}
	}
}

// A build that waits for its slot has its inputs sent ahead, and starts at once when
// it gets the slot.
func TestInputsAreForwardedToBusyBuilders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		m := newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			if b.DrvPath == storePath("holder.drv") {
				<-hold
			}
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}, spool: 1 << 30})
		in, lib := large("in", storePath("lib")), newFile("lib", "L")
		first := r.connect(1, "x86_64-linux.0")
		if err := first.send(lib, in); err != nil {
			t.Fatal(err)
		}
		first.Close()
		synctest.Wait()
		m.Delete(in.info.Path)
		m.Delete(lib.info.Path)
		before := m.uploads()

		go r.connect(2, "x86_64-linux.0").build(newDerivation("holder"))
		synctest.Wait()
		c := r.connect(3, "x86_64-linux.1")
		if got := c.ask(false, in, lib); got != "inlib" { // from the spool
			t.Fatalf("there: %q", got)
		}
		built := make(chan struct{})
		go func() {
			defer close(built)
			c.mustBuild(newDerivation("out", in))
		}()
		time.Sleep(time.Second)
		if _, _, ok := m.Path(in.info.Path); !ok {
			t.Error("the input is not there while the build waits")
		}
		close(hold)
		<-built
		if n := m.uploads() - before; n != 1 {
			t.Errorf("%d uploads, want 1", n)
		}
	})
}

// Builds that wait for their slot keep no transfer from the one that has it: it needs
// one for its output before it gives the slot back.
func TestForwardsLeaveTransfersToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finish := make(chan struct{})
		m := newMachine(t, "one", daemontest.Options{Build: func(ctx context.Context, b *daemontest.Build) *daemon.BuildResult {
			if b.DrvPath != storePath("holder.drv") {
				return nil
			}
			<-finish
			return sized(inlineOutput+1)(ctx, b)
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}, spool: 1 << 30})
		var builds sync.WaitGroup
		build := func(c *client, d derivation) {
			builds.Go(func() {
				if _, err := c.build(d); err != nil {
					t.Errorf("%s: %v", d.path, err)
				}
			})
		}
		build(r.connect(1, "x86_64-linux.0"), newDerivation("holder"))
		synctest.Wait()
		for i := range 12 { // more than a builder has transfers
			in := large(string(rune('a'+i)) + "-in")
			c := r.connect(uint32(2+i), "x86_64-linux.1")
			c.upload(in)
			build(c, newDerivation("out-"+in.info.Path[len("/nix/store/"):], in))
		}
		time.Sleep(time.Minute)
		if s := r.fleet.Stats()[0]; s.Transfers != 0 {
			t.Errorf("%d transfers while there is nothing to send", s.Transfers)
		}
		close(finish)
		builds.Wait()
	})
}

// Whatever becomes of the sending ahead, the build gets its inputs.
func TestForwardsThatComeToNothing(t *testing.T) {
	var refuse atomic.Bool
	tests := map[string]struct {
		before func(context.Context, daemontest.Call) error
		// change happens while the upload is in its middle.
		change func(r *rig, target, other *machine)
	}{
		"refused": {before: on(daemon.OpAddMultipleToStore, func(context.Context) error {
			if refuse.CompareAndSwap(true, false) {
				return errors.New("disk full")
			}
			return nil
		})},
		"hung up": {before: on(daemon.OpAddMultipleToStore, func(context.Context) error {
			if refuse.CompareAndSwap(true, false) {
				return daemontest.ErrHangUp
			}
			return nil
		})},
		"the builder is lost":     {change: func(_ *rig, target, _ *machine) { target.down() }},
		"the builder is cordoned": {change: func(r *rig, target, other *machine) { target.cordon(); r.use(target, other) }},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				refuse.Store(true)
				target := newMachine(t, "target", daemontest.Options{Before: tc.before}, slots(8))
				other := newMachine(t, "other", daemontest.Options{})
				r := newRig(t, rigOptions{builders: []*machine{target, other}, spool: 1 << 30})
				c := r.connect(1, "x86_64-linux.0")
				in := large("in")
				if tc.change != nil {
					go func() {
						time.Sleep(time.Second)
						tc.change(r, target, other)
					}()
				}
				if err := c.sendSlowly(t.Context(), in, time.Minute); err != nil {
					t.Fatal(err)
				}
				c.mustBuild(newDerivation("out", in))
				if lines := c.said.lines(); len(lines) != 0 {
					t.Errorf("lines = %q", lines)
				}
				if tc.change != nil && len(other.Builds()) != 1 {
					t.Error("it was not built on the other builder")
				}
				c.Close()
				synctest.Wait()
				r.noneLeft()
			})
		})
	}
}

// A client that leaves in the middle of its upload leaves nothing behind.
func TestClientLeavesWhileForwarding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}, spool: 1 << 30})
		c := r.connect(1, "x86_64-linux.0")
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if err := c.sendSlowly(ctx, large("in"), time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v", err)
		}
		if n := m.uploads(); n != 1 {
			t.Errorf("%d uploads to the builder, want 1", n)
		}
		synctest.Wait()
		r.noneLeft()
		if u := r.spool.Usage(); u.Bytes != 0 {
			t.Errorf("spool: %+v", u)
		}
	})
}

// Small inputs and those that the builder has are not worth it.
func TestWhatIsNotForwarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := large("in")
		m := newMachine(t, "one", daemontest.Options{}).has(in)
		r := newRig(t, rigOptions{builders: []*machine{m}, spool: 1 << 30})
		c := r.connect(1, "x86_64-linux.0")
		if err := c.send(newFile("small", "S")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := m.Sessions(); n != 0 {
			t.Errorf("%d sessions on the builder for a small input", n)
		}
		c.ask(false, in)
		if err := c.send(in); err != nil { // whatever it was told
			t.Fatal(err)
		}
		synctest.Wait()
		if n := m.uploads(); n != 0 {
			t.Errorf("%d uploads of what is there", n)
		}
	})
}

func TestTakeReady(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		inputs  string // names of all inputs
		kept    string // those that the builder has
		sent    string
		waiting []parcel
		want    string
	}{
		"nothing":                       {},
		"in order of references":        {"ab", "", "", []parcel{item("b", "a"), item("a")}, "ab"},
		"what is there is left out":     {"ab", "a", "", []parcel{item("a"), item("b", "a")}, "b"},
		"after what was sent":           {"ab", "", "a", []parcel{item("b", "a")}, "b"},
		"not before what is to come":    {"abc", "", "", []parcel{item("b", "a"), item("c")}, "c"},
		"nor what that is needed for":   {"abc", "", "", []parcel{item("b", "a"), item("c", "b")}, ""},
		"references outside the inputs": {"b", "", "", []parcel{item("b", "x")}, "b"},
		"self":                          {"a", "", "", []parcel{item("a", "a")}, "a"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &forward{
				needs: letters(tc.inputs), offered: map[string]bool{}, sent: letters(tc.sent),
				kept: func(path string) bool { return letters(tc.kept)[path] },
			}
			f.offer(tc.waiting...)
			var got strings.Builder
			for _, p := range f.takeReady() {
				got.WriteString(p.info.Path[len(storePath("")):])
			}
			if got.String() != tc.want {
				t.Errorf("ready: %q, want %q", got.String(), tc.want)
			}
		})
	}
}

// letters returns the store paths whose names are the letters of a string.
func letters(names string) map[string]bool {
	set := map[string]bool{}
	for _, name := range names {
		set[storePath(string(name))] = true
	}
	return set
}
