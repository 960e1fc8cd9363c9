// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func TestWrongUploadIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		bad := newFile("a", "A")
		bad.info.NARHash = strings.Repeat("0", 64)
		if err := c.send(newFile("b", "B"), bad, newFile("c", "C")); err == nil || !strings.Contains(err.Error(), "instead of sha256:0000") {
			t.Errorf("error = %v", err)
		}
		if u := r.spool.Usage(); u.Paths != 1 {
			t.Errorf("the spool has %d paths, want the one before", u.Paths)
		}
		// The connection is still in step.
		c.upload(newFile("d", "D"))
		c.mustBuild(newDerivation("out"))
	})
}

func TestUploadWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		m := newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			if b.DrvPath == storePath("holder.drv") {
				<-hold
			}
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}, spool: 1000})
		holder := r.connect(1, "x86_64-linux.0")
		go holder.build(newDerivation("holder"))
		synctest.Wait()

		small := newFile("small", "s")
		large := newFile("large", strings.Repeat("L", 1000), small.info.Path)
		large.info.Ultimate = true
		larger := newFile("larger", strings.Repeat("M", 2000), small.info.Path, large.info.Path)
		c := r.connect(2, "x86_64-linux.0")
		go func() {
			time.Sleep(40 * time.Second)
			close(hold)
		}()
		c.upload(small, large, larger)
		c.mustBuild(newDerivation("out", small, larger))
		if info, _, ok := m.Path(large.info.Path); !ok || info.Ultimate {
			t.Errorf("on the builder: %v, %+v", ok, info)
		}
		lines := c.said.lines()
		if len(lines) != 3 || !strings.Contains(lines[0], "1/1 slots busy") || !strings.Contains(lines[1], "1/1 slots busy") ||
			!strings.Contains(lines[2], "no room in the dispatcher's spool: uploading to b/one directly") {
			t.Errorf("lines = %q", lines)
		}
		if r.spool.Usage().Bytes > 1000 {
			t.Errorf("the spool has %d bytes", r.spool.Usage().Bytes)
		}
	})
}

func TestBuildBoundToALostBuilderFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newMachine(t, "one", daemontest.Options{Before: func(_ context.Context, c daemontest.Call) error {
			if c.Request.Operation() == daemon.OpBuildDerivation {
				return daemontest.ErrHangUp
			}
			return nil
		}}, slots(8))
		two := newMachine(t, "two", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{one, two}, spool: 100})
		c := r.connect(1, "x86_64-linux.0")
		large := newFile("large", strings.Repeat("L", 1000))
		c.upload(large)
		_, err := c.build(newDerivation("out", large))
		if err == nil || !strings.Contains(err.Error(), "builder b/one") || !strings.Contains(err.Error(), "cannot move") {
			t.Errorf("error = %v", err)
		}
		r.noneLeft()
	})
}

func TestBoundBuilderMustServeTheBuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newMachine(t, "one", daemontest.Options{})
		kvm := newMachine(t, "kvm", daemontest.Options{}, features("kvm"))
		kvm.down()
		r := newRig(t, rigOptions{builders: []*machine{one, kvm}, spool: 100})
		c := r.connect(1, "x86_64-linux.0")
		c.upload(newFile("large", strings.Repeat("L", 1000)))
		if _, err := c.build(newDerivation("out").requiring("kvm")); err == nil || !strings.Contains(err.Error(), "cannot build for x86_64-linux with kvm") {
			t.Errorf("error = %v", err)
		}
		r.noneLeft()
	})
}

// Two clients that both lack a path upload it at the same time.
func TestSameUploadTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{}, slots(2))
		r := newRig(t, rigOptions{builders: []*machine{m}, spool: 8 * replayable})
		shared := newFile("shared", strings.Repeat("S", 2*replayable))
		var both sync.WaitGroup
		for i, name := range []string{"one", "two"} {
			c := r.connect(uint32(i+1), "x86_64-linux."+strconv.Itoa(i))
			if got := c.ask(false, shared); got != "" {
				t.Errorf("there: %q", got)
			}
			both.Go(func() {
				// Both are in the middle of it at once.
				half := len(shared.nar) / 2
				slow := io.MultiReader(bytes.NewReader(shared.nar[:half]), pausing(time.Second), bytes.NewReader(shared.nar[half:]))
				err := c.AddMultipleToStore(t.Context(), daemon.PathSource{Count: 1, Next: func() (daemon.PathInfo, io.Reader, error) {
					return shared.info, slow, nil
				}}, nil)
				if err != nil {
					t.Error(err)
				}
				c.mustBuild(newDerivation(name, shared))
			})
		}
		both.Wait()
		if u := r.spool.Usage(); u.Paths != 3 || u.Bytes > 3*replayable {
			t.Errorf("spool: %+v, want the path once and two outputs", u)
		}
	})
}

// pausing is a reader that takes its time to have nothing.
func pausing(d time.Duration) io.Reader {
	return readerFunc(func([]byte) (int, error) {
		time.Sleep(d)
		return 0, io.EOF
	})
}

// What the client was told is there is not evicted before its build, whatever others
// upload meanwhile.
func TestPathsInUseAreNotEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{}, slots(2))
		r := newRig(t, rigOptions{builders: []*machine{m}, spool: 1000})
		a, b := newFile("a", strings.Repeat("A", 500)), newFile("b", strings.Repeat("B", 500))
		first := r.connect(1, "x86_64-linux.0")
		if err := first.send(a); err != nil {
			t.Fatal(err)
		}
		first.Close()
		second := r.connect(2, "x86_64-linux.0")
		if got := second.ask(false, a); got != "a" {
			t.Fatalf("there: %q", got)
		}
		third := r.connect(3, "x86_64-linux.1")
		third.upload(b)
		third.mustBuild(newDerivation("other", b))
		second.mustBuild(newDerivation("out", a))
		if lines := second.said.lines(); len(lines) != 0 {
			t.Errorf("lines = %q", lines)
		}
	})
}
