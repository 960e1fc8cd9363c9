// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// relayScript is the remote program of a real client: it joins its standard input
// and output to two pipes of the test.
const relayScript = `#!/bin/sh
exec 3<&0
cat /shared/down &
cat <&3 >/shared/up
wait
`

// pipes is the test's end of the relay.
type pipes struct{ up, down *os.File }

func (p pipes) Read(b []byte) (int, error)  { return p.up.Read(b) }
func (p pipes) Write(b []byte) (int, error) { return p.down.Write(b) }
func (p pipes) Close() error                { return errors.Join(p.up.Close(), p.down.Close()) }

// serveRelay serves the next connection of the relay in shared.
func serveRelay(t *testing.T, shared string, d *daemontest.Daemon) <-chan error {
	t.Helper()
	if err := os.WriteFile(filepath.Join(shared, "relay"), []byte(relayScript), 0o755); err != nil {
		t.Fatal(err)
	}
	up, down := filepath.Join(shared, "up"), filepath.Join(shared, "down")
	if out, err := exec.Command("mkfifo", up, down).CombinedOutput(); err != nil {
		t.Fatalf("mkfifo: %v: %s", err, out)
	}
	served := make(chan error, 1)
	go func() {
		var p pipes
		var err error
		if p.up, err = os.OpenFile(up, os.O_RDONLY, 0); err == nil {
			p.down, err = os.OpenFile(down, os.O_WRONLY, 0)
		}
		if err == nil {
			err = d.Serve(p)
		}
		served <- err
	}()
	return served
}

const relayStore = "ssh-ng://localhost?remote-program=/shared/relay"

// TestRealClientPing lets real clients shake hands with our server.
func TestRealClientPing(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n realNix) {
		ctx := realContext(t)
		d := daemontest.New(daemontest.Options{Trust: daemon.Trusted, DaemonVersion: "2.99.dispatcher"})
		defer d.Close()
		cmd, shared := n.command(ctx, t, "sh", "-c",
			"nix store info --store '"+relayStore+"' || nix store ping --store '"+relayStore+"'")
		if n.root == "/" || strings.Contains(n.name, "bookworm") {
			cmd, shared = n.command(ctx, t, "nix", "store", "ping", "--store", relayStore)
		}
		served := serveRelay(t, shared, d)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("ping: %v\n%s", err, out)
		}
		if err := <-served; err != nil {
			t.Errorf("server: %v", err)
		}
		if ops := d.Operations(); len(ops) != 0 {
			t.Errorf("operations %v", ops)
		}
		t.Logf("%s", out)
	})
}

// TestRealClientBuild lets real clients build on our server.
func TestRealClientBuild(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n realNix) {
		ctx := realContext(t)
		d := daemontest.New(daemontest.Options{Trust: daemon.Trusted, Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			out, err := b.Output("out", []byte("made in memory\n"))
			if err != nil {
				return &daemon.BuildResult{Status: daemon.StatusMiscFailure, ErrorMessage: err.Error()}
			}
			_ = b.Log("a line of the log")
			// The dummy form of a realisation that Nix writes from 2.35 on.
			id := "sha256:" + strings.Repeat("0", 64) + "!out"
			return &daemon.BuildResult{BuiltOutputs: []daemon.BuiltOutput{{
				ID: id, Realisation: fmt.Sprintf(`{"dependentRealisations":{},"id":%q,"outPath":%q,"signatures":[]}`, id, filepath.Base(out)),
			}}}
		}})
		defer d.Close()
		expr := `derivation { name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ (builtins.toFile "in" "input") ]; }`
		cmd, shared := n.command(ctx, t, "sh", "-c", `cat $(nix-build --no-out-link --max-jobs 0 --builders "$1" -E "$2")`,
			"build", relayStore+" x86_64-linux - 1 1", expr)
		served := serveRelay(t, shared, d)
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.HasSuffix(out, []byte("made in memory\n")) || !bytes.Contains(out, []byte("a line of the log")) {
			t.Fatalf("build: %v\n%s", err, out)
		}
		if err := <-served; err != nil {
			t.Errorf("server: %v", err)
		}
		if got, want := fmt.Sprint(d.Operations()), fmt.Sprint([]daemon.Operation{31, 44, 36, 26, 38}); got != want {
			t.Errorf("operations %s, want %s", got, want)
		}
	})
}
