// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// eight is a derivation with eight outputs.
func eight() derivation {
	d := newDerivation("eight")
	d.Outputs = nil
	for i := range 8 {
		name := fmt.Sprint("o", i)
		d.Outputs = append(d.Outputs, daemon.DerivationOutput{Name: name, Path: storePath("eight-" + name)})
	}
	return d
}

func TestOutputsSurviveTheirBuilder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		d := eight()
		if _, err := c.build(d); err != nil {
			t.Fatal(err)
		}
		m.down()
		for _, out := range d.Outputs {
			c.fetch(out.Path)
		}
	})
}

func TestOutputsOverOtherConnections(t *testing.T) {
	tests := map[string]uint64{"from the spool": 1 << 20, "streamed": 1}
	for name, limit := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, "one", daemontest.Options{})
				r := newRig(t, rigOptions{builders: []*machine{m}, limits: Limits{SpooledOutput: limit}})
				c := r.connect(1, "x86_64-linux.0")
				d := eight()
				if _, err := c.build(d); err != nil {
					t.Fatal(err)
				}
				// The first connection may be closed before the others come.
				c.fetch(d.Outputs[0].Path)
				c.Close()
				synctest.Wait()
				time.Sleep(time.Second)
				var wg sync.WaitGroup
				for _, out := range d.Outputs[1:] {
					other := r.connect(1, "x86_64-linux.0")
					wg.Go(func() {
						other.fetch(out.Path)
						other.Close()
					})
				}
				wg.Wait()
				synctest.Wait()
				r.noneLeft()
				if _, valid, err := r.connect(1, "x86_64-linux.0").QueryPathInfo(t.Context(), d.Outputs[1].Path, nil); valid || err != nil {
					t.Errorf("after all was fetched and the client left: %v, %v", valid, err)
				}
			})
		})
	}
}

func TestUnfetchedOutputsAreForgottenAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		if _, err := c.build(eight()); err != nil {
			t.Fatal(err)
		}
		c.Close()
		synctest.Wait()
		if r.spool.Usage().Pinned == 0 {
			t.Error("the outputs are not kept for the client to come back")
		}
		time.Sleep(lingering + time.Second)
		r.noneLeft()
	})
}

func TestOnlyOwnOutputsCanBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := newFile("secret", "S")
		m := newMachine(t, "one", daemontest.Options{}).has(secret)
		r := newRig(t, rigOptions{builders: []*machine{m}})
		mine := r.connect(1, "x86_64-linux.0")
		input := newFile("input", "I")
		mine.upload(input)
		d := newDerivation("out", input)
		mine.mustBuild(d)
		for name, try := range map[string]struct {
			c    *client
			path string
		}{
			"a path of the builder":  {r.connect(1, "x86_64-linux.0"), secret.info.Path},
			"a path of the spool":    {r.connect(1, "x86_64-linux.0"), input.info.Path},
			"another client's build": {r.connect(2, "x86_64-linux.0"), d.Outputs[0].Path},
			"no process known":       {r.connect(0, "x86_64-linux.0"), d.Outputs[0].Path},
		} {
			if _, valid, err := try.c.QueryPathInfo(t.Context(), try.path, nil); valid || err != nil {
				t.Errorf("%s: QueryPathInfo = %v, %v", name, valid, err)
			}
			var nar bytes.Buffer
			if _, err := try.c.NARFromPath(t.Context(), try.path, &nar, nil); err == nil || !strings.Contains(err.Error(), "not an output of a build of this client") {
				t.Errorf("%s: NARFromPath = %v", name, err)
			}
			// There are clients that overlook the error, and wait for the archive.
			if _, _, err := try.c.QueryPathInfo(t.Context(), try.path, nil); err == nil {
				t.Errorf("%s: the connection goes on", name)
			}
		}
	})
}

func TestClientWithoutProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOptions{builders: []*machine{newMachine(t, "one", daemontest.Options{})}})
		c := r.connect(0, "x86_64-linux.0")
		c.mustBuild(newDerivation("out"))
		if _, err := c.build(newDerivation("other")); err != nil {
			t.Fatal(err)
		}
		c.Close()
		synctest.Wait()
		r.noneLeft() // nobody can come back for it
	})
}

func TestLargeOutputsStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			b.Output("o0", bytes.Repeat([]byte("x"), 1<<20))
			for _, o := range b.Derivation.Outputs[1:] {
				b.Output(o.Name, []byte(o.Name))
			}
			return &daemon.BuildResult{Status: daemon.StatusBuilt}
		}})
		tests := map[string]rigOptions{
			"limit": {builders: []*machine{m}, spool: 1 << 30, limits: Limits{SpooledOutput: 1 << 19}},
			"room":  {builders: []*machine{m}, spool: 1 << 19},
		}
		hook := uint32(0)
		for name, opts := range tests {
			r := newRig(t, opts)
			hook++
			c := r.connect(hook, "x86_64-linux.0")
			if got := c.mustBuild(eight()); len(got["o0"]) < 1<<20 {
				t.Errorf("%s: %d bytes", name, len(got["o0"]))
			}
			if u := r.spool.Usage(); u.Paths != 7 {
				t.Errorf("%s: the spool has %d paths, want the small ones", name, u.Paths)
			}
		}
	})
}

func TestOutputsOfTwoRunsAreNotMixed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := 0
		m := newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			run++
			for _, o := range b.Derivation.Outputs {
				b.Output(o.Name, fmt.Appendf(nil, "%s of run %d", o.Name, run))
			}
			return &daemon.BuildResult{Status: daemon.StatusBuilt}
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		for hook := uint32(1); hook <= 2; hook++ {
			c := r.connect(hook, "x86_64-linux.0")
			for name, content := range c.mustBuild(eight()) {
				if want := fmt.Sprintf("%s of run %d", name, hook); !strings.Contains(content, want) {
					t.Errorf("content %q, want %q", content, want)
				}
			}
			c.Close()
		}
	})
}

func TestLyingBuilder(t *testing.T) {
	tests := map[string]struct {
		build func(b *daemontest.Build, m *machine)
		want  string
	}{
		"no output": {func(*daemontest.Build, *machine) {}, "does not have the output"},
		"wrong content": {func(b *daemontest.Build, m *machine) {
			info, _ := daemontest.FileInfo(b.Derivation.Outputs[0].Path, []byte("said"))
			_, nar := daemontest.FileInfo(info.Path, []byte("sent"))
			m.Add(info, nar)
		}, "are not what its path info says"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var m *machine
				m = newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
					tc.build(b, m)
					return &daemon.BuildResult{Status: daemon.StatusBuilt}
				}})
				r := newRig(t, rigOptions{builders: []*machine{m}})
				c := r.connect(1, "x86_64-linux.0")
				if _, err := c.build(newDerivation("out")); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error = %v", err)
				}
				r.noneLeft()
			})
		})
	}
}

func TestOutputPaths(t *testing.T) {
	t.Parallel()
	drv := &daemon.BasicDerivation{Outputs: []daemon.DerivationOutput{
		{Name: "out", Path: storePath("out")}, {Name: "float", HashAlgo: "r:sha256"},
	}}
	floating := storePath("float")
	result := &daemon.BuildResult{BuiltOutputs: []daemon.BuiltOutput{
		{ID: "sha256:00!out", Realisation: `{"outPath":"` + floating[len("/nix/store/"):] + `x"}`},
		{ID: "sha256:00!float", Realisation: `{"outPath":"` + floating[len("/nix/store/"):] + `"}`},
		{ID: "sha256:00!bad", Realisation: `{`},
		{ID: "sha256:00!escape", Realisation: `{"outPath":"../../etc/passwd"}`},
	}}
	got := outputPaths(drv, result)
	if len(got) != 2 || got[0] != storePath("out") || got[1] != floating {
		t.Errorf("output paths = %v", got)
	}
}

// A client that builds much on one connection does not pile up daemons on builders.
func TestSessionsEndWithTheirBuilds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		for i := range 30 {
			c.mustBuild(newDerivation(fmt.Sprint("out", i)))
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		// A connection has room for fewer sessions than there were builds.
		if len(m.conns) != 1 {
			t.Errorf("%d connections to the builder", len(m.conns))
		}
	})
}

// A large output outlives the daemon that has built it, and one that is about to send
// it.
func TestLargeOutputAfterADaemonWasRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := 0
		m := newMachine(t, "one", daemontest.Options{Before: on(daemon.OpNARFromPath, func(context.Context) error {
			if sent++; sent <= 2 {
				return daemontest.ErrHangUp
			}
			return nil
		})})
		r := newRig(t, rigOptions{builders: []*machine{m}, limits: Limits{SpooledOutput: 1}})
		c := r.connect(1, "x86_64-linux.0")
		d := newDerivation("out")
		if got := c.mustBuild(d)["out"]; !strings.Contains(got, d.path) {
			t.Errorf("output = %q", got)
		}
		if n := len(m.Builds()); n != 1 {
			t.Errorf("%d builds, want one", n)
		}
		synctest.Wait()
		want := []daemon.Operation{
			daemon.OpBuildDerivation, daemon.OpQueryPathInfo, daemon.OpNARFromPath, // in one flight
			daemon.OpAddTempRoot, daemon.OpQueryValidPaths,
			daemon.OpQueryPathInfo, daemon.OpNARFromPath, daemon.OpQueryPathInfo, daemon.OpNARFromPath,
		}
		if diff := cmp.Diff(want, m.Operations(), cmpopts.SortSlices(func(a, b daemon.Operation) bool { return a < b })); diff != "" {
			t.Errorf("operations on the builder (-want +got):\n%s", diff)
		}
	})
}

// A client that stops reading an output which comes from a builder keeps none of the
// builder's transfers.
func TestClientStallsWhileABuilderSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{Build: sized(2 * smallTransfer)})
		r := newRig(t, rigOptions{builders: []*machine{m}, limits: Limits{SpooledOutput: 1}})
		c := r.connect(1, "x86_64-linux.0")
		d := newDerivation("out")
		if _, err := c.build(d); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		ended := make(chan error)
		go func() {
			_, err := c.NARFromPath(t.Context(), d.Outputs[0].Path, writerFunc(func(p []byte) (int, error) {
				<-stop
				return len(p), nil
			}), nil)
			ended <- err
		}()
		synctest.Wait()
		if n := r.fleet.Stats()[0].Transfers; n != 1 {
			t.Errorf("%d transfers while the output is sent, want 1", n)
		}
		time.Sleep(6 * time.Minute)
		if n := r.fleet.Stats()[0].Transfers; n != 0 {
			t.Errorf("%d transfers for a client that has stalled", n)
		}
		close(stop)
		if err := <-ended; err == nil {
			t.Error("the output has come as if nothing was")
		}
	})
}
