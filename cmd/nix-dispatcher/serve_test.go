// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what happens soon.
const patience = 10 * time.Second

// dispatcher is one that runs in the test's process.
type dispatcher struct {
	dir    string
	cancel context.CancelFunc
	ended  chan error
}

// flags are those of a dispatcher in dir.
func flags(t *testing.T, dir string) []string {
	t.Helper()
	helper := filepath.Join(dir, "helper")
	volume := filepath.Join(dir, "volume")
	if err := os.MkdirAll(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(helper, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{
		"-builders=" + filepath.Join(dir, "machines"), "-volume=" + volume, "-helper=" + helper,
		"-spool-dir=" + filepath.Join(dir, "spool"), "-log-level=error", "-shutdown-timeout=5s",
	}
}

func start(t *testing.T, dir string, more ...string) *dispatcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	d := &dispatcher{dir: dir, cancel: cancel, ended: make(chan error, 1)}
	args := append(flags(t, dir), more...)
	go func() { d.ended <- run(ctx, args) }()
	return d
}

// stop ends the dispatcher as SIGTERM does.
func (d *dispatcher) stop(t *testing.T) {
	t.Helper()
	d.cancel()
	select {
	case err := <-d.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the dispatcher does not end")
	}
}

func (d *dispatcher) ready(t *testing.T) error {
	t.Helper()
	return run(t.Context(), []string{"ready", "-volume=" + filepath.Join(d.dir, "volume")})
}

// eventually waits until the dispatcher is ready, or not because of want.
func (d *dispatcher) eventually(t *testing.T, want string) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		err = d.ready(t)
		if err == nil && want == "" || err != nil && want != "" && strings.Contains(err.Error(), want) {
			return
		}
	}
	t.Fatalf("ready: %v, want %q", err, want)
}

func writeMachines(t *testing.T, dir, text string) {
	t.Helper()
	file := filepath.Join(dir, "machines")
	if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func TestLifeOfADispatcher(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := start(t, dir)
	d.eventually(t, "has not read a list of builders")
	writeMachines(t, dir, "ssh-ng://nix@192.0.2.1 x86_64-linux - 2\n")
	d.eventually(t, "")
	machines := filepath.Join(dir, "volume", "machines")
	text, err := os.ReadFile(machines)
	if err != nil || !strings.Contains(string(text), "=x86_64-linux.0 ") {
		t.Errorf("machines file = %q, %v", text, err)
	}
	writeMachines(t, dir, "ssh-ng://nix@192.0.2.1 riscv64-linux - 2\n")
	for deadline := time.Now().Add(patience); !strings.Contains(string(text), "=riscv64-linux.0 "); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("machines file = %q, want the other system", text)
		}
		if text, err = os.ReadFile(machines); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "volume", "dispatch.sock"))
	if err != nil || info.Mode() != os.ModeSocket|0o666 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}

	second := run(t.Context(), append(flags(t, dir), "-spool-dir="+filepath.Join(dir, "other-spool")))
	if second == nil || !strings.Contains(second.Error(), "another dispatcher serves") {
		t.Errorf("a second dispatcher: %v", second)
	}
	began := time.Now()
	d.stop(t)
	if took := time.Since(began); took > time.Second {
		t.Errorf("an idle dispatcher took %v to end", took)
	}
	d.eventually(t, "does not answer")

	// A socket that was left is no obstacle.
	if err := os.WriteFile(filepath.Join(dir, "volume", "dispatch.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again := start(t, dir)
	again.eventually(t, "")
	again.stop(t)
}

func TestReadyWithoutDispatcher(t *testing.T) {
	t.Parallel()
	err := run(t.Context(), []string{"ready", "-volume", t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "not installed yet") {
		t.Errorf("error = %v", err)
	}
}

func TestStartFailures(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ flag, want string }{
		"helper missing":      {"-helper=/nowhere/helper", "read the helper"},
		"volume missing":      {"-volume=/nowhere/volume", "does not exist: create it or set --volume"},
		"identity missing":    {"-identity-file=/nowhere/key", "--identity-file: open /nowhere/key: no such file"},
		"known hosts missing": {"-known-hosts=/nowhere/hosts", "--known-hosts: open /nowhere/hosts: no such file"},
		"spool elsewhere":     {"-spool-dir=/dev/null/spool", "open spool"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(t.Context(), append(flags(t, t.TempDir()), tc.flag))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}
