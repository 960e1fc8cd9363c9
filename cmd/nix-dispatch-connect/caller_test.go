// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"os"
	"os/exec"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/connect"
)

func TestHeaderNamesTheCaller(t *testing.T) {
	t.Parallel()
	first, second := start(t), start(t)
	got := first.header
	if want := (connect.Target{Class: "x86_64-linux", Slot: 3}); got.Target != want {
		t.Errorf("target = %+v, want %+v", got.Target, want)
	}
	if want := uint32(os.Getpid()); got.Hook.PID != want {
		t.Errorf("hook = %+v, want process %d", got.Hook, want)
	}
	if want := uint32(os.Getppid()); got.Client.PID != want {
		t.Errorf("client = %+v, want process %d", got.Client, want)
	}
	if got.Hook.StartTime == 0 || got.Client.StartTime > got.Hook.StartTime {
		t.Errorf("start times: hook %d, client %d, want the hook's not before its parent's", got.Hook.StartTime, got.Client.StartTime)
	}
	if got.Namespace == 0 {
		t.Error("the pid namespace is unknown")
	}
	if first.header != second.header {
		t.Errorf("two connections of one hook differ: %+v and %+v", first.header, second.header)
	}
}

// Nix up to 2.19 and Lix call the helper through bash, which must not come
// between it and the hook.
func TestHeaderThroughBash(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	l, path := listen(t)
	cmd := helperCommand(t, path)
	cmd.Path, cmd.Args = bash, []string{"bash", "-c", os.Args[0] + " --stdio --store 'x86_64-linux.3'"}
	stdin, byNix := pipe(t)
	cmd.Stdin, cmd.Stderr = stdin, new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	server, header := accept(t, l)
	if want := uint32(os.Getpid()); header.Hook.PID != want {
		t.Errorf("hook = %+v, want process %d", header.Hook, want)
	}
	_ = stdin.Close()
	_ = byNix.Close()
	var rest [1]byte
	_, _ = server.Read(rest[:]) // the end of Nix's stream
	_ = server.Close()
	if got := end(t, cmd); got != (result{}) {
		t.Errorf("helper ended with %+v, want status 0 and silence", got)
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	const rest = " S 17 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 98"
	tests := map[string]struct {
		stat       string
		wantParent int
		wantStart  uint64
	}{
		"plain":                     {stat: "42 (nix)" + rest, wantParent: 17, wantStart: 12345},
		"blanks and parens in name": {stat: "42 (a) R 1 (b c)" + rest, wantParent: 17, wantStart: 12345},
		"empty":                     {},
		"no command":                {stat: "42 nix S 17"},
		"too short":                 {stat: "42 (nix) S 17 42"},
		"no number":                 {stat: "42 (nix) S x 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345"},
		"negative start":            {stat: "42 (nix) S 17 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 -1"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parent, start := parseStat(tc.stat)
			if parent != tc.wantParent || start != tc.wantStart {
				t.Errorf("parseStat = %d, %d, want %d, %d", parent, start, tc.wantParent, tc.wantStart)
			}
		})
	}
}

func TestUnknownProcess(t *testing.T) {
	t.Parallel()
	if p, parent := process(0); p != (connect.Process{}) || parent != 0 {
		t.Errorf("process(0) = %+v, %d, want zeros", p, parent)
	}
	const never = 1 << 30 // above the kernel's limit of process ids
	if p, parent := process(never); p != (connect.Process{PID: never}) || parent != 0 {
		t.Errorf("process(%d) = %+v, %d, want the id alone", never, p, parent)
	}
}
