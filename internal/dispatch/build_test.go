// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func TestBuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			b.Log("compiling")
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		a := newFile("a", "A")
		b := newFile("b", "B", a.info.Path)
		c := r.connect(1, "x86_64-linux.0")
		if c.Peer().Trust != daemon.Trusted || c.Peer().Version != daemon.Protocol || c.Peer().DaemonVersion != "dispatcher of a test" {
			t.Errorf("peer = %+v", c.Peer())
		}
		if sent := c.upload(a, b); len(sent) != 2 {
			t.Errorf("the client sent %v, want both", sent)
		}
		d := newDerivation("out", b)
		if got := c.mustBuild(d)["out"]; !strings.Contains(got, d.path+"!out") {
			t.Errorf("output = %q", got)
		}
		for _, f := range []file{a, b} {
			if info, _, ok := m.Path(f.info.Path); !ok || info.Ultimate {
				t.Errorf("%s on the builder: %v, %+v", f.info.Path, ok, info)
			}
		}
		if want := []string{"compiling"}; !slices.Equal(c.said.logLines(), want) {
			t.Errorf("log = %q, want %q", c.said.logLines(), want)
		}
		c.Close()

		// Inputs and outputs of one build need no upload for the next.
		next := r.connect(2, "x86_64-linux.1")
		out := newFile("out", d.path+"!out")
		if sent := next.upload(a, b, out); len(sent) != 0 {
			t.Errorf("the next client sent %v", sent)
		}
		next.mustBuild(newDerivation("next", b, out))
	})
}

func TestBuildWithoutInputsAsksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		c.upload()
		c.mustBuild(newDerivation("out"))
		synctest.Wait()
		// What was built is held for the builds that need it.
		want := []daemon.Operation{
			daemon.OpBuildDerivation, daemon.OpQueryPathInfo, daemon.OpNARFromPath,
			daemon.OpAddTempRoot, daemon.OpQueryValidPaths,
		}
		if diff := cmp.Diff(want, m.Operations()); diff != "" {
			t.Errorf("operations on the builder (-want +got):\n%s", diff)
		}
	})
}

func TestFailedBuildIsAResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			b.Log("last line")
			return &daemon.BuildResult{Status: daemon.StatusPermanentFailure, ErrorMessage: "builder failed with exit code 3"}
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		for range 2 { // one after the other: the slot is given back
			result, err := c.build(newDerivation("out"))
			if err != nil {
				t.Fatal(err)
			}
			if result.Status != daemon.StatusPermanentFailure || result.ErrorMessage != "builder failed with exit code 3 (on builder b/one)" {
				t.Errorf("result = %+v", result)
			}
			r.noneLeft()
		}
		if got := c.said.logLines(); len(got) != 2 || got[0] != "last line" {
			t.Errorf("log = %q", got)
		}
		if log := r.log.String(); !strings.Contains(log, `msg="Build failed"`) || strings.Contains(log, "msg=Built") {
			t.Errorf("log of the dispatcher:\n%s", log)
		}
	})
}

func TestLocated(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		"":                          "(on builder mac/one)",
		"exit code 3":               "exit code 3 (on builder mac/one)",
		"exit code 3\nlast:\n> a\n": "exit code 3\nlast:\n> a\n(on builder mac/one)",
		"mac/one is full":           "mac/one is full",
	} {
		if got := located(message, "mac/one"); got != want {
			t.Errorf("located(%q) = %q, want %q", message, got, want)
		}
	}
}

func TestUsersAreToldWhereTheirBuildRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOptions{builders: []*machine{newMachine(t, "one", daemontest.Options{})}})
		c := r.connect(1, "x86_64-linux.0")
		c.mustBuild(newDerivation("out"))
		if first, ok := c.said.list[0].(daemon.Next); !ok || first.Text != "building on b/one\n" {
			t.Errorf("first message = %#v", c.said.list[0])
		}
	})
}

func TestBuildersOwnErrorIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{Before: daemontest.At(1, daemontest.Refuse("the moon is full"))})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		_, err := c.build(newDerivation("out"))
		var remote *daemon.RemoteError
		if !errors.As(err, &remote) || remote.Message != "the moon is full" {
			t.Errorf("error = %v", err)
		}
	})
}

func TestPlacementFollowsTheDerivation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plain := newMachine(t, "plain", daemontest.Options{}, slots(8))
		kvm := newMachine(t, "kvm", daemontest.Options{}, features("kvm", "big"))
		r := newRig(t, rigOptions{builders: []*machine{plain, kvm}})
		c := r.connect(1, "x86_64-linux.big.kvm.0")
		d := newDerivation("needs-kvm").requiring("kvm")
		c.mustBuild(d)
		if got := kvm.Builds(); !slices.Equal(got, []string{d.path}) {
			t.Errorf("the builder with kvm built %v", got)
		}
		// It came over a line for more, but needs nothing: any builder will do.
		e := newDerivation("needs-nothing")
		c.mustBuild(e)
		if got := plain.Builds(); !slices.Equal(got, []string{e.path}) {
			t.Errorf("the large builder built %v", got)
		}
		f := newDerivation("builtin")
		f.Platform = "builtin"
		c.mustBuild(f)
	})
}

func TestMalformedStructuredAttributes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOptions{builders: []*machine{newMachine(t, "one", daemontest.Options{})}})
		d := newDerivation("out")
		d.Env = []daemon.EnvVar{{Name: "__json", Value: "{"}}
		c := r.connect(1, "x86_64-linux.0")
		if _, err := c.build(d); err == nil || !strings.Contains(err.Error(), "structured attributes") {
			t.Errorf("error = %v", err)
		}
		c.mustBuild(newDerivation("other")) // the connection is still in step
	})
}

func TestSlotsAreNotExceeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running := 0
		m := newMachine(t, "one", daemontest.Options{Build: func(ctx context.Context, _ *daemontest.Build) *daemon.BuildResult {
			running++
			if running > 1 {
				t.Error("two builds on a builder with one slot")
			}
			time.Sleep(time.Minute)
			running--
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		began := time.Now()
		done := make(chan struct{})
		for i := range 4 {
			c := r.connect(uint32(i+1), "x86_64-linux.0")
			go func() {
				defer func() { done <- struct{}{} }()
				c.mustBuild(newDerivation(fmt.Sprint("out", i)))
				c.Close()
			}()
		}
		for range 4 {
			<-done
		}
		if took := time.Since(began); took < 4*time.Minute {
			t.Errorf("four builds of a minute took %v on one slot", took)
		}
	})
}

func TestWaitingIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		m.down()
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		a := newFile("a", "A")
		c.upload(a) // needs no builder
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.mustBuild(newDerivation("out", a))
		}()
		time.Sleep(65 * time.Second)
		synctest.Wait()
		lines := c.said.lines()
		if len(lines) != 3 {
			t.Errorf("%d lines in 65 s, want one at once and every 30 s: %q", len(lines), lines)
		}
		for _, line := range lines {
			if !strings.HasPrefix(line, "waiting for an x86_64-linux builder: b/one unreachable since ") {
				t.Errorf("line %q", line)
			}
		}
		m.up()
		<-done
	})
}

func TestWaitingClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		m.down()
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.buildUntil(ctx, newDerivation("out")); err == nil {
			t.Error("built")
		}
		m.up()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := m.Builds(); len(got) != 0 {
			t.Errorf("built %v for a client that has left", got)
		}
	})
}

func TestLeavingClientStopsItsBuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopped := make(chan struct{})
		m := newMachine(t, "one", daemontest.Options{Build: func(ctx context.Context, b *daemontest.Build) *daemon.BuildResult {
			if b.DrvPath != storePath("long.drv") {
				return nil
			}
			<-ctx.Done()
			close(stopped)
			return &daemon.BuildResult{Status: daemon.StatusMiscFailure}
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.buildUntil(ctx, newDerivation("long")); err == nil {
			t.Error("built")
		}
		<-stopped
		synctest.Wait()
		r.noneLeft()
		next := r.connect(2, "x86_64-linux.0")
		next.mustBuild(newDerivation("short"))
	})
}
