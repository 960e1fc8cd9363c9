// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// twoOutputs is a derivation whose outputs "a" and "b" have the content that a builder
// is made with.
func twoOutputs(inputs ...file) derivation {
	d := newDerivation("two", inputs...)
	d.Outputs = []daemon.DerivationOutput{{Name: "a", Path: storePath("two-a")}, {Name: "b", Path: storePath("two-b")}}
	return d
}

// builds is a builder whose outputs have that content behind their name.
func builds(content string) daemontest.Options {
	return daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
		for _, out := range b.Derivation.Outputs {
			b.Output(out.Name, []byte(out.Name+content))
		}
		return &daemon.BuildResult{Status: daemon.StatusBuilt}
	}}
}

// TestBuilderLostBetweenOutputs loses the builder once the client has one of two
// outputs that stream.
func TestBuilderLostBetweenOutputs(t *testing.T) {
	tests := map[string]struct {
		second string
		want   string // in the error, if there is to be one
	}{
		"reproduced":        {second: "same"},
		"not deterministic": {second: "other", want: "the derivation is not deterministic, and outputs of two runs must not be mixed"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one := newMachine(t, "one", builds("same"), slots(8))
				two := newMachine(t, "two", builds(tc.second))
				r := newRig(t, rigOptions{builders: []*machine{one, two}, limits: Limits{SpooledOutput: 1}})
				c := r.connect(1, "x86_64-linux.0")
				in := newFile("in", "I")
				c.upload(in)
				d := twoOutputs(in)
				if _, err := c.build(d); err != nil {
					t.Fatal(err)
				}
				if got := c.fetch(d.Outputs[0].Path); !strings.Contains(got, "asame") {
					t.Errorf("first output: %q", got)
				}
				one.down()
				var nar bytes.Buffer
				_, err := c.NARFromPath(t.Context(), d.Outputs[1].Path, &nar, c.said.add)
				switch {
				case tc.want == "" && (err != nil || !strings.Contains(nar.String(), "bsame")):
					t.Errorf("second output: %q, %v", nar.String(), err)
				case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "b/one") || !strings.Contains(err.Error(), "b/two")):
					t.Errorf("error = %v, want one with %q", err, tc.want)
				}
				if got := two.Builds(); !slices.Equal(got, []string{d.path}) {
					t.Errorf("the other builder built %v", got)
				}
				if lines := c.said.lines(); !slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, "rebuilding on b/two") }) {
					t.Errorf("lines = %q", lines)
				}
				if want := "left b/one: Returning"; !slices.Contains(r.events.all(), want) {
					t.Errorf("events %q, want %q", r.events.all(), want)
				}
				c.Close()
			})
		})
	}
}

// The client has half of an output when the builder is lost: it gets the other half from
// the next one.
func TestBuilderLostInTheMiddleOfAnOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := strings.Repeat("0123456789abcdef", 1<<16)
		one := newMachine(t, "one", builds(content), slots(8))
		two := newMachine(t, "two", builds(content))
		r := newRig(t, rigOptions{builders: []*machine{one, two}, limits: Limits{SpooledOutput: 1}})
		c := r.connect(1, "x86_64-linux.0")
		d := twoOutputs()
		if _, err := c.build(d); err != nil {
			t.Fatal(err)
		}
		var nar bytes.Buffer
		into := writerFunc(func(p []byte) (int, error) {
			if nar.Len() < len(content)/2 && nar.Len()+len(p) >= len(content)/2 {
				one.down()
			}
			return nar.Write(p)
		})
		if _, err := c.NARFromPath(t.Context(), d.Outputs[1].Path, into, nil); err != nil {
			t.Fatal(err)
		}
		_, want := daemontest.FileInfo(d.Outputs[1].Path, []byte("b"+content))
		if !bytes.Equal(nar.Bytes(), want) {
			t.Errorf("%d bytes that are not the output", nar.Len())
		}
		if len(two.Builds()) != 1 {
			t.Errorf("the other builder built %v", two.Builds())
		}
		c.Close()
	})
}

func TestBuilderThatHasCollectedAnOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newMachine(t, "one", builds("x"))
		r := newRig(t, rigOptions{builders: []*machine{one}, limits: Limits{SpooledOutput: 1}})
		c := r.connect(1, "x86_64-linux.0")
		d := twoOutputs()
		if _, err := c.build(d); err != nil {
			t.Fatal(err)
		}
		one.Delete(d.Outputs[0].Path)
		if got := c.fetch(d.Outputs[0].Path); !strings.Contains(got, "ax") {
			t.Errorf("output: %q", got)
		}
		c.Close()
		synctest.Wait()
	})
}

func TestClientThatLeavesWhileItsOutputIsBuiltAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newMachine(t, "one", builds("x"), slots(8))
		two := newMachine(t, "two", daemontest.Options{Before: on(daemon.OpBuildDerivation, daemontest.Silent)})
		r := newRig(t, rigOptions{builders: []*machine{one, two}, limits: Limits{SpooledOutput: 1}})
		c := r.connect(0, "x86_64-linux.0")
		d := twoOutputs()
		if _, err := c.build(d); err != nil {
			t.Fatal(err)
		}
		one.down()
		ctx, cancel := context.WithCancel(t.Context())
		fetched := make(chan error, 1)
		go func() {
			_, err := c.NARFromPath(ctx, d.Outputs[0].Path, io.Discard, nil)
			fetched <- err
		}()
		synctest.Wait()
		if builds := r.server.Status().Builds; len(builds) != 1 || builds[0].Phase != string(PhaseBuilding) || builds[0].Builder != "b/two" {
			t.Errorf("builds = %+v", builds)
		}
		cancel()
		if err := <-fetched; err == nil {
			t.Error("fetched")
		}
		time.Sleep(time.Second)
		if n := len(r.server.Status().Builds); n != 0 {
			t.Errorf("%d builds go on", n)
		}
	})
}

func TestResumedStream(t *testing.T) {
	t.Parallel()
	var got bytes.Buffer
	w := &resumed{to: &got}
	for _, upTo := range []int{3, 0, 2, 7, 10} {
		if n, err := io.Copy(w.again(), strings.NewReader("0123456789"[:upTo])); err != nil || n != int64(upTo) {
			t.Fatal(n, err)
		}
	}
	if got.String() != "0123456789" {
		t.Errorf("stream = %q", got.String())
	}
	w = &resumed{to: writerFunc(func(p []byte) (int, error) { return 1, io.ErrShortWrite })}
	if _, err := w.again().Write([]byte("ab")); err == nil || w.written != 1 {
		t.Errorf("%v after %d bytes", err, w.written)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// The builder dies when one of two outputs is in the spool, and the next one makes
// others: the client gets both from the same run, and so do later builds.
func TestBuilderLostWhileOutputsAreSpooled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fetched := 0
		options := builds("first")
		options.Before = on(daemon.OpNARFromPath, func(ctx context.Context) error {
			if fetched++; fetched == 2 {
				return daemontest.HangUp(ctx)
			}
			return nil
		})
		one := newMachine(t, "one", options, slots(8))
		two := newMachine(t, "two", builds("second"))
		r := newRig(t, rigOptions{builders: []*machine{one, two}})
		c := r.connect(1, "x86_64-linux.0")
		d := twoOutputs()
		for name, got := range c.mustBuild(d) {
			if !strings.Contains(got, name+"second") {
				t.Errorf("output %s is %q", name, got)
			}
		}
		for _, out := range d.Outputs {
			pin, ok := r.spool.Pin(out.Path)
			if !ok {
				t.Errorf("%s is not in the spool", out.Name)
				continue
			}
			if want := newFile(out.Path[len("/nix/store/")+33:], out.Name+"second").info.NARHash; pin.Info().NARHash != want {
				t.Errorf("the spool has %s of the other run", out.Name)
			}
			pin.Release()
		}
	})
}
