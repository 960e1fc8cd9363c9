// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// fullDisk is a spool whose files are on a disk without space: /dev/full takes the
// place of each.
type fullDisk struct{ *spool.Store }

func (f fullDisk) Create(info daemon.PathInfo) (*spool.Writer, error) {
	w, err := f.Store.Create(info)
	if err != nil {
		return nil, err
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer full.Close()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || filepath.Base(filepath.Dir(target)) != "nars" {
			continue
		}
		var fd int
		for _, digit := range filepath.Base(link) {
			fd = 10*fd + int(digit-'0')
		}
		if err := syscall.Dup3(int(full.Fd()), fd, syscall.O_CLOEXEC); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// unwritable is a spool whose directory cannot be written to.
type unwritable struct{ *spool.Store }

func (unwritable) Create(daemon.PathInfo) (*spool.Writer, error) { return nil, os.ErrPermission }

func TestSpoolThatFails(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("this system has no /dev/full")
	}
	tests := map[string]func(*spool.Store) Spool{
		"disk full":  func(s *spool.Store) Spool { return fullDisk{s} },
		"unwritable": func(s *spool.Store) Spool { return unwritable{s} },
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, "one", daemontest.Options{})
				r := newRig(t, rigOptions{builders: []*machine{m}, failing: tc})
				c := r.connect(1, "x86_64-linux.0")
				a := newFile("a", "A")
				b := newFile("b", strings.Repeat("B", 5000), a.info.Path)
				if err := c.send(a, b); err != nil {
					t.Fatal(err)
				}
				d := newDerivation("out", b)
				if got := c.mustBuild(d)["out"]; !strings.Contains(got, d.path) {
					t.Errorf("output = %q", got)
				}
				lines := c.said.lines()
				if len(lines) != 1 || !strings.Contains(lines[0], "the dispatcher's spool has failed: uploading to b/one directly") {
					t.Errorf("lines = %q", lines)
				}
				if usage := r.spool.Usage(); usage.Bytes != 0 {
					t.Errorf("spool: %+v", usage)
				}
			})
		})
	}
}

// A client that stops in the middle gives back what it keeps from others.
func TestStalledClient(t *testing.T) {
	large := newFile("large", strings.Repeat("L", 2*replayable))
	tests := map[string]struct {
		spool int64
		sent  int // bytes of the archive before the client stops
	}{
		"holding room in the spool":               {8 * replayable, replayable},
		"holding a slot":                          {100, replayable},
		"holding a slot between upload and build": {100, len(large.nar)},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, "one", daemontest.Options{})
				r := newRig(t, rigOptions{builders: []*machine{m}, spool: tc.spool})
				c := r.connect(1, "x86_64-linux.0")
				resume, ended := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(ended)
					_ = c.AddMultipleToStore(t.Context(), daemon.PathSource{Count: 1, Next: func() (daemon.PathInfo, io.Reader, error) {
						return large.info, io.MultiReader(bytes.NewReader(large.nar[:tc.sent]), waiting(resume), bytes.NewReader(large.nar[tc.sent:])), nil
					}}, nil)
				}()
				began := time.Now()
				other := r.connect(2, "x86_64-linux.1")
				time.Sleep(time.Second)
				if tc.sent == len(large.nar) {
					close(resume)
				}
				other.mustBuild(newDerivation("out"))
				if took := time.Since(began); took > 6*time.Minute {
					t.Errorf("another build waited %v", took)
				}
				time.Sleep(6 * time.Minute)
				if n := r.server.Connections(); n != 1 {
					t.Errorf("%d connections, want the other client's", n)
				}
				other.Close()
				synctest.Wait()
				r.noneLeft()
				if tc.sent < len(large.nar) {
					close(resume)
				}
				<-ended
				c.Close()
			})
		})
	}
}

// waiting is a reader that has nothing and ends when the channel is closed.
func waiting(c <-chan struct{}) io.Reader {
	return readerFunc(func([]byte) (int, error) {
		<-c
		return 0, io.EOF
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Garbage collection between the question what is there and the build.
func TestCollectedInputs(t *testing.T) {
	missing := &daemon.BuildResult{Status: daemon.StatusMiscFailure, ErrorMessage: "some dependencies are missing"}
	tests := map[string]struct {
		collect bool
		failing int // so many builds end with missing
		want    int // builds on the builder
	}{
		"collected":                       {collect: true, want: 1},
		"another reason, nothing missing": {failing: 9, want: 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newFile("a", "A")
				var m *machine
				begun := 0
				m = newMachine(t, "one", daemontest.Options{
					Before: on(daemon.OpBuildDerivation, func(context.Context) error {
						if begun++; begun == 1 && tc.collect {
							m.Delete(a.info.Path)
						}
						return nil
					}),
					Build: func(context.Context, *daemontest.Build) *daemon.BuildResult {
						if len(m.Builds()) <= tc.failing {
							return missing
						}
						return nil
					},
				}).has(a)
				r := newRig(t, rigOptions{builders: []*machine{m}})
				c := r.connect(1, "x86_64-linux.0")
				if err := c.send(a); err != nil {
					t.Fatal(err)
				}
				result, err := c.build(newDerivation("out", a))
				if err != nil || result.Status.Success() != tc.collect {
					t.Errorf("result = %+v, %v", result, err)
				}
				if got := len(m.Builds()); got != tc.want {
					t.Errorf("%d builds, want %d", got, tc.want)
				}
			})
		})
	}
}

// The builders of a class leave the list while a build waits for one of them.
func TestClassThatVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		m.endpoint.Cordon = &inventory.Cordon{Reason: "disk swap"}
		other := newMachine(t, "other", daemontest.Options{}, func(e *inventory.Endpoint) { e.Systems = []string{"riscv64-linux"} })
		r := newRig(t, rigOptions{builders: []*machine{m, other}})
		c := r.connect(1, "x86_64-linux.0")
		built := make(chan error, 1)
		go func() {
			_, err := c.build(newDerivation("out"))
			built <- err
		}()
		time.Sleep(time.Second)
		r.use(other)
		time.Sleep(time.Minute)
		m.endpoint.Cordon = nil
		r.use(m, other)
		if err := <-built; err != nil {
			t.Error(err)
		}
		lines := c.said.lines()
		if len(lines) != 3 || !strings.HasSuffix(lines[0], "b/one cordoned (disk swap)") || lines[1] != "waiting for an x86_64-linux builder: none is known" {
			t.Errorf("lines = %q", lines)
		}
	})
}

func TestUnusualDerivations(t *testing.T) {
	tests := map[string]struct {
		change func(*derivation)
		want   string // in the error; none if empty
	}{
		"built by Nix itself":          {func(d *derivation) { d.Platform, d.Builder = "builtin", "builtin:fetchurl" }, ""},
		"path outside the store":       {func(d *derivation) { d.path = "/etc/" + strings.Repeat("0", 32) + "-x.drv" }, "/etc/"},
		"path of no derivation":        {func(d *derivation) { d.path = storePath("x") }, storePath("x")},
		"output outside the store":     {func(d *derivation) { d.Outputs[0].Path = "/etc/passwd" }, "/etc/passwd"},
		"input outside the store":      {func(d *derivation) { d.InputSources = []string{"/etc/passwd"} }, "/etc/passwd"},
		"path that climbs out of it":   {func(d *derivation) { d.InputSources = []string{"/nix/store/../../etc/passwd"} }, "/nix/store/.."},
		"input that nobody has":        {func(d *derivation) { d.InputSources = []string{storePath("unknown")} }, "start the build again"},
		"inputs and outputs repeated":  {func(d *derivation) { d.Outputs = append(d.Outputs, d.Outputs[0]) }, ""},
		"output that is its own input": {func(d *derivation) { d.InputSources = []string{d.Outputs[0].Path} }, "start the build again"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, rigOptions{builders: []*machine{newMachine(t, "one", daemontest.Options{})}})
				d := newDerivation("out")
				tc.change(&d)
				_, err := r.connect(1, "x86_64-linux.0").build(d)
				switch {
				case tc.want == "" && err != nil:
					t.Error(err)
				case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
					t.Errorf("error = %v, want one with %q", err, tc.want)
				}
			})
		})
	}
}
