// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package clientdir

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

func newDirectory(t *testing.T, maxLines int) *Directory {
	t.Helper()
	helper := filepath.Join(t.TempDir(), "helper")
	if err := os.WriteFile(helper, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	return New(Options{Path: t.TempDir(), ClientPath: "/nix-dispatch", Helper: helper, MaxLines: maxLines})
}

func read(t *testing.T, d *Directory, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(d.opts.Path, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func mustPublish(t *testing.T, d *Directory, builders ...scheduler.Builder) bool {
	t.Helper()
	changed, err := d.Publish(builders)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func TestInstall(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, 10)
	for range 2 { // also over what is there
		if err := d.Install(); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]os.FileMode{HelperName: 0o755, ConfName: 0o644, "": os.ModeDir | 0o755} {
		info, err := os.Stat(filepath.Join(d.opts.Path, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%q has mode %v, want %v", name, info.Mode(), want)
		}
	}
	if got := read(t, d, HelperName); got != "program" {
		t.Errorf("helper = %q", got)
	}
	if got := read(t, d, ConfName); !strings.HasSuffix(got, "\nbuilders = @/nix-dispatch/machines\n") {
		t.Errorf("nix.conf = %q", got)
	}
	if got, want := d.Socket(), filepath.Join(d.opts.Path, connect.SocketName); got != want {
		t.Errorf("socket %s, want %s", got, want)
	}
	if entries, err := os.ReadDir(d.opts.Path); err != nil || len(entries) != 2 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	d.opts.Helper += "-missing"
	if err := d.Install(); err == nil || !strings.Contains(err.Error(), "read the helper") {
		t.Errorf("without a helper: %v", err)
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, 6)
	builders := []scheduler.Builder{
		{ID: "a", Systems: []string{"x86_64-linux"}, Supported: []string{"kvm"}, Slots: 2, Down: "unreachable"},
		{ID: "g", Systems: []string{"x86_64-linux"}, Mandatory: []string{"gpu"}, Slots: 1},
	}
	if !mustPublish(t, d, builders...) {
		t.Error("the first file is no change")
	}
	const line = "ssh-ng://localhost?remote-program=/nix-dispatch/nix-dispatch-connect&remote-store="
	want := line + "x86_64-linux.0 x86_64-linux - 1 100 - - -\n" +
		line + "x86_64-linux.1 x86_64-linux - 1 100 - - -\n" +
		line + "x86_64-linux.kvm.0 x86_64-linux - 1 99 kvm - -\n" +
		line + "x86_64-linux.kvm.1 x86_64-linux - 1 99 kvm - -\n" +
		line + "x86_64-linux..gpu.0 x86_64-linux - 1 100 - gpu -\n" +
		line + "x86_64-linux..gpu.1 x86_64-linux - 1 100 - gpu -\n"
	got := read(t, d, MachinesName)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("machines file (-want +got):\n%s", diff)
	}
	if _, err := machines.ParsePortable(MachinesName, []byte(got)); err != nil {
		t.Error(err)
	}
	builders[0].Down = ""
	if mustPublish(t, d, builders...) {
		t.Error("a builder that recovers changes the file")
	}
	if !mustPublish(t, d) {
		t.Error("no builders are no change")
	}
	if got := read(t, d, MachinesName); !strings.HasPrefix(got, "# ") || strings.Count(got, "\n") != 1 {
		t.Errorf("without builders: %q, want one comment line", got)
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, 100)
	mustPublish(t, d, scheduler.Builder{ID: "a", Systems: []string{"x86_64-linux"}, Supported: []string{"kvm", "odd.name"}, Slots: 2})
	for _, line := range scheduler.Lines([]scheduler.Builder{{Systems: []string{"x86_64-linux"}, Supported: []string{"kvm", "odd.name"}, Slots: 2}}, 100) {
		class, err := d.Lookup(connect.Target{Class: line.Class.Name(), Slot: 1})
		if err != nil || class.Key() != line.Class.Key() {
			t.Errorf("%s = %v, %v, want %v", line.Class.Name(), class, err, line.Class)
		}
	}
	// Clients may hold an older file for a while.
	mustPublish(t, d, scheduler.Builder{ID: "a", Systems: []string{"x86_64-linux"}, Slots: 1})
	if _, err := d.Lookup(connect.Target{Class: "x86_64-linux.kvm", Slot: 1}); err != nil {
		t.Errorf("a line of the file before: %v", err)
	}
	for want, target := range map[string]connect.Target{
		"knows no builders of class \"riscv64-linux\"": {Class: "riscv64-linux"},
		"has no slot 16, only 0 to 15":                 {Class: "x86_64-linux", Slot: 16},
		"has no slot -1":                               {Class: "x86_64-linux", Slot: -1},
	} {
		if _, err := d.Lookup(target); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error = %v, want one with %q", target, err, want)
		}
	}
}

func TestClassThatCannotBeWrittenIsLeftOut(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, 1)
	_, err := d.Publish([]scheduler.Builder{{ID: "a", Systems: []string{"a b", "x86_64-linux"}, Slots: 1}})
	if err == nil || !strings.Contains(err.Error(), "no lines for builds of a b") {
		t.Errorf("error = %v", err)
	}
	if got := read(t, d, MachinesName); strings.Count(got, "\n") != 1 || !strings.Contains(got, "x86_64-linux.0") {
		t.Errorf("the file is %q, want the line for the other system", got)
	}
}

// TestReadersSeeWholeFiles replaces the file all the time and checks what readers
// get.
func TestReadersSeeWholeFiles(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, 1000)
	publish := func(slots int) {
		mustPublish(t, d, scheduler.Builder{ID: "a", Systems: []string{"x86_64-linux"}, Slots: slots})
	}
	publish(1)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			content := read(t, d, MachinesName)
			if n := strings.Count(content, "\n"); n != 16 && n != 500 || !strings.HasSuffix(content, "-\n") {
				t.Errorf("a reader saw %d lines", n)
				return
			}
		}
	})
	for i := range 100 {
		publish(1 + 124*(i%2))
	}
	close(done)
	wg.Wait()
}
