// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// minutes is a builder whose builds take a minute and say something every 20 s.
func minutes(end *daemon.BuildResult) daemontest.Options {
	return daemontest.Options{Build: func(ctx context.Context, b *daemontest.Build) *daemon.BuildResult {
		for _, line := range []string{"one", "two", "three"} {
			b.Log(line)
			select {
			case <-time.After(20 * time.Second):
			case <-ctx.Done():
				return nil
			}
		}
		return end
	}}
}

// inBackground builds and returns where the result will be.
func (c *client) inBackground(ctx context.Context, d derivation) <-chan buildOutcome {
	out := make(chan buildOutcome, 1)
	go func() {
		result, err := c.buildUntil(ctx, d)
		out <- buildOutcome{result, err}
	}()
	return out
}

type buildOutcome struct {
	*daemon.BuildResult
	err error
}

func TestEqualBuildsRunOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", minutes(nil), slots(8))
		r := newRig(t, rigOptions{builders: []*machine{m}})
		in := newFile("in", "I")
		d := newDerivation("out", in)
		var all sync.WaitGroup
		for i := range 3 {
			c := r.connect(uint32(i+1), "x86_64-linux.0")
			all.Go(func() {
				time.Sleep(time.Duration(i) * 25 * time.Second)
				c.upload(in)
				if got := c.mustBuild(d)["out"]; !strings.Contains(got, d.path) {
					t.Errorf("client %d got %q", i, got)
				}
				if got, want := c.said.logLines(), []string{"one", "two", "three"}; !slices.Equal(got, want) {
					t.Errorf("client %d saw the log %q, want %q", i, got, want)
				}
				followed := slices.Contains(c.said.lines(), "the same build is under way already: following it")
				if followed != (i > 0) {
					t.Errorf("client %d was told %q", i, c.said.lines())
				}
				c.Close()
			})
		}
		time.Sleep(55 * time.Second)
		if builds := r.server.Status().Builds; len(builds) != 1 || builds[0].Clients != 3 {
			t.Errorf("builds = %+v, want one with 3 clients", builds)
		}
		all.Wait()
		if got := m.Builds(); len(got) != 1 {
			t.Errorf("%d builds on the builder, want one", len(got))
		}
		if n := strings.Count(strings.Join(r.events.all(), "\n"), "joined"); n != 2 {
			t.Errorf("%d joined, want 2: %q", n, r.events.all())
		}
		synctest.Wait()
		r.noneLeft()
	})
}

// Inputs that no client has sent are known by what builders say of them.
func TestEqualBuildsWithInputsOnBuilders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := newFile("in", "I")
		one := newMachine(t, "one", minutes(nil), slots(8)).has(in)
		two := newMachine(t, "two", minutes(nil), slots(8)).has(in)
		r := newRig(t, rigOptions{builders: []*machine{one, two}})
		d := newDerivation("out", in)
		var built []<-chan buildOutcome
		for i := range 2 {
			c := r.connect(uint32(i+1), "x86_64-linux.0")
			if sent := c.upload(in); len(sent) != 0 {
				t.Errorf("client %d sent %v", i, sent)
			}
			built = append(built, c.inBackground(t.Context(), d))
			time.Sleep(time.Second)
		}
		for i, o := range built {
			if got := <-o; got.err != nil || !got.Status.Success() {
				t.Errorf("client %d: %+v", i, got)
			}
		}
		if n := len(one.Builds()) + len(two.Builds()); n != 1 {
			t.Errorf("%d builds, want one", n)
		}
	})
}

func TestUnequalBuildsAreNotShared(t *testing.T) {
	plain := newDerivation("out", newFile("in", "I"))
	tests := map[string]struct {
		second derivation
		input  file
		spool  int64
	}{
		"other derivation path": {second: derivation{plain.BasicDerivation, storePath("other.drv")}, input: newFile("in", "I")},
		"other environment": {second: func() derivation {
			d := plain
			d.Env = []daemon.EnvVar{{Name: "a", Value: "b"}}
			return d
		}(), input: newFile("in", "I")},
		"output known after the build only": {second: func() derivation {
			d := plain
			d.Outputs = []daemon.DerivationOutput{{Name: "out", HashAlgo: "r:sha256"}}
			return d
		}(), input: newFile("in", "I")},
		"input without room in the spool": {second: plain, input: newFile("in", "I"), spool: 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, "one", minutes(nil), slots(8), features("ca-derivations"))
				r := newRig(t, rigOptions{builders: []*machine{m}, spool: tc.spool})
				first, second := r.connect(1, "x86_64-linux.0"), r.connect(2, "x86_64-linux.1")
				if err := first.send(tc.input); err != nil {
					t.Fatal(err)
				}
				d := plain
				if name == "output known after the build only" {
					d = tc.second
				}
				one := first.inBackground(t.Context(), d)
				synctest.Wait()
				if err := second.send(tc.input); err != nil {
					t.Fatal(err)
				}
				two := second.inBackground(t.Context(), tc.second)
				<-one
				<-two
				if got := m.Builds(); len(got) != 2 {
					t.Errorf("%d builds on the builder, want both", len(got))
				}
				first.Close()
				second.Close()
			})
		})
	}
}

// Two dispatchers have different content under the same path; one of them never has.
func TestContentOfInputsCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		identity := func(content string) string {
			r := newRig(t, rigOptions{})
			in := newFile("in", content)
			s := newSupplier(r.server, r.server.log, scheduler.NewClass(system, nil, nil), nil, nil)
			defer s.release()
			pin, err := s.intoSpool(&in.info, func(w io.Writer) error {
				_, err := w.Write(in.nar)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			s.inputs.put(pin)
			d := newDerivation("out", in)
			id, err := s.identity(t.Context(), &daemon.BuildDerivation{DrvPath: d.path, Derivation: &d.BasicDerivation})
			if err != nil || id == "" {
				t.Fatalf("identity = %q, %v", id, err)
			}
			return id
		}
		a := identity("A")
		if again := identity("A"); again != a {
			t.Error("equal builds have different identities")
		}
		if identity("B") == a {
			t.Error("builds with different inputs have the same identity")
		}
	})
}

func TestFirstClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", minutes(nil), slots(8))
		r := newRig(t, rigOptions{builders: []*machine{m}})
		in := newFile("in", "I")
		d := newDerivation("out", in)
		first, second := r.connect(1, "x86_64-linux.0"), r.connect(2, "x86_64-linux.1")
		first.upload(in)
		ctx, leave := context.WithCancel(t.Context())
		gone := first.inBackground(ctx, d)
		synctest.Wait()
		second.upload(in)
		built := second.inBackground(t.Context(), d)
		time.Sleep(10 * time.Second)
		leave()
		<-gone
		time.Sleep(time.Second)
		if u := r.spool.Usage(); u.Pinned == 0 {
			t.Error("the first client has taken the pins on the inputs with it")
		}
		if got := <-built; got.err != nil || !got.Status.Success() {
			t.Errorf("the second client got %+v", got)
		}
		second.fetch(d.Outputs[0].Path)
		if len(m.Builds()) != 1 {
			t.Errorf("builds: %v", m.Builds())
		}
	})
}

func TestLastClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", minutes(nil), slots(8))
		r := newRig(t, rigOptions{builders: []*machine{m}})
		d := newDerivation("out")
		ctx, leave := context.WithCancel(t.Context())
		var gone []<-chan buildOutcome
		for i := range 2 {
			gone = append(gone, r.connect(uint32(i+1), "x86_64-linux.0").inBackground(ctx, d))
			synctest.Wait()
		}
		time.Sleep(10 * time.Second)
		leave()
		for _, c := range gone {
			<-c
		}
		time.Sleep(time.Second)
		r.noneLeft()
		if n := len(r.server.Status().Builds); n != 0 {
			t.Errorf("%d builds go on for nobody", n)
		}
		// Nobody joins what was given up.
		r.connect(3, "x86_64-linux.0").mustBuild(d)
		if len(m.Builds()) != 2 {
			t.Errorf("builds: %v", m.Builds())
		}
	})
}

func TestFailureReachesEveryClient(t *testing.T) {
	tests := map[string]struct {
		options daemontest.Options
		want    string
	}{
		"a result": {minutes(&daemon.BuildResult{Status: daemon.StatusPermanentFailure, ErrorMessage: "exit code 3"}), "exit code 3 (on builder b/one)"},
		"an error": {daemontest.Options{Before: on(daemon.OpBuildDerivation, func(context.Context) error {
			time.Sleep(time.Minute)
			return daemontest.Refuse("the moon is full")(nil)
		})}, "the moon is full"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, "one", tc.options, slots(8))
				r := newRig(t, rigOptions{builders: []*machine{m}})
				var outcomes []<-chan buildOutcome
				for i := range 3 {
					outcomes = append(outcomes, r.connect(uint32(i+1), "x86_64-linux.0").inBackground(t.Context(), newDerivation("out")))
					synctest.Wait()
				}
				for i, o := range outcomes {
					got := <-o
					text := ""
					if got.err != nil {
						text = got.err.Error()
					} else {
						text = got.ErrorMessage
					}
					if !strings.HasSuffix(text, tc.want) {
						t.Errorf("client %d got %q, want %q", i, text, tc.want)
					}
				}
				if n := slices.Index(m.Operations(), daemon.OpBuildDerivation); n < 0 || slices.Contains(m.Operations()[n+1:], daemon.OpBuildDerivation) {
					t.Errorf("operations: %v", m.Operations())
				}
			})
		})
	}
}
