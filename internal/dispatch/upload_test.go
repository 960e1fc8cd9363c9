// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"strings"
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
