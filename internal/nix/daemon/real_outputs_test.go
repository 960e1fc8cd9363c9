// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// realStdio starts nix-daemon --stdio in the ways in which builders do: as root it
// works on the store itself, for other users it speaks to the daemon's socket.
// It prepares the command only.
type realStdio func(ctx context.Context, t *testing.T, n realNix) (cmd *exec.Cmd, shared string)

// otherUserScript starts the daemon, waits for its socket and speaks to it as
// nobody, who is trusted.
const otherUserScript = `
echo 'trusted-users = root nobody' >> /etc/nix/nix.conf
nix-daemon &
while [ ! -S /nix/var/nix/daemon-socket/socket ]; do sleep 0.05; done
mkdir -p /tmp/home; chown 65534 /tmp/home
NIX_REMOTE=daemon HOME=/tmp/home exec setpriv --reuid=65534 --regid=65534 --clear-groups nix-daemon --stdio
`

func eachStdio(t *testing.T, test func(t *testing.T, n realNix, start realStdio)) {
	t.Helper()
	for name, start := range map[string]realStdio{
		"root": func(ctx context.Context, t *testing.T, n realNix) (*exec.Cmd, string) {
			return n.command(ctx, t, "nix-daemon", "--stdio")
		},
		"other user": func(ctx context.Context, t *testing.T, n realNix) (*exec.Cmd, string) {
			return n.command(ctx, t, "sh", "-c", otherUserScript)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachNix(t, func(t *testing.T, n realNix) { test(t, n, start) })
		})
	}
}

// twoOutputs is a derivation with the outputs realOut and realOther.
func twoOutputs(script string) *daemon.BasicDerivation {
	drv := realDerivation(script)
	drv.InputSources = nil
	drv.Outputs = append(drv.Outputs, daemon.DerivationOutput{Name: "dev", Path: realOther})
	drv.Env = append(drv.Env, daemon.EnvVar{Name: "dev", Value: realOther}, daemon.EnvVar{Name: "PATH", Value: "/bin:/usr/bin"})
	return drv
}

func TestRealBuildOutputs(t *testing.T) {
	t.Parallel()
	eachStdio(t, func(t *testing.T, n realNix, start realStdio) {
		ctx := realContext(t)
		cmd, _ := start(ctx, t, n)
		c, err := daemon.NewClient(ctx, pipeTo(t, cmd), daemon.ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		archives := map[string]*bytes.Buffer{}
		take := func(info daemon.PathInfo) (io.Writer, error) {
			archives[info.Path] = &bytes.Buffer{}
			return archives[info.Path], nil
		}
		// Twice: after a success the connection can be used again, and a build of
		// what is there already is one, too.
		for range 2 {
			result, err := c.BuildOutputs(ctx, realDrv, twoOutputs("echo a > $out; echo b > $dev"), daemon.BuildNormal, nil,
				daemon.Outputs{Paths: []string{realOut, realOther}, Take: take})
			if err != nil || !result.Status.Success() {
				t.Fatalf("build: %+v, %v", result, err)
			}
			for path, contents := range map[string]string{realOut: "a\n", realOther: "b\n"} {
				if got := archives[path]; got == nil || !bytes.Equal(got.Bytes(), daemontest.FileNAR([]byte(contents))) {
					t.Errorf("output %s: %v", path, got)
				}
			}
			clear(archives)
		}
		failing := twoOutputs("exit 3")
		failing.Outputs = failing.Outputs[1:]
		failing.Outputs[0].Path = realLarge
		result, err := c.BuildOutputs(ctx, realDrv, failing, daemon.BuildNormal, nil, daemon.Outputs{Paths: []string{realLarge}, Take: take})
		if err != nil || result.Status != daemon.StatusPermanentFailure || len(archives) != 0 {
			t.Errorf("failing build: %+v, %v, %d archives", result, err, len(archives))
		}
	})
}

// A build that is given up ends on the daemon, although what was asked behind it
// lies unread in the connection. The builder keeps a pipe open for as long as it
// or one of its children lives.
func TestRealBuildOutputsCancel(t *testing.T) {
	t.Parallel()
	eachStdio(t, func(t *testing.T, n realNix, start realStdio) {
		ctx := realContext(t)
		cmd, shared := start(ctx, t, n)
		fifo := filepath.Join(shared, "alive")
		if out, err := exec.Command("mkfifo", "-m", "666", fifo).CombinedOutput(); err != nil {
			t.Fatalf("mkfifo: %v: %s", err, out)
		}
		c, err := daemon.NewClient(ctx, pipeTo(t, cmd), daemon.ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		alive := make(chan string, 1)
		go func() {
			said, err := os.ReadFile(fifo)
			if err != nil {
				t.Error(err)
			}
			alive <- string(said)
		}()
		// A Nix that is busy when we hang up, in the first milliseconds of a build or
		// with a line of its log, can miss that until it has something to say. So
		// this build is silent when it is given up, and has been for a while.
		drv := twoOutputs("exec 9> /shared/alive; echo begun >&9; sleep 0.3; echo ready; sleep 600 & sleep 600; echo ended >&9")
		userGone := errors.New("user gone")
		building, cancel := context.WithCancelCause(ctx)
		_, err = c.BuildOutputs(building, realDrv, drv, daemon.BuildNormal, func(m daemon.Message) error {
			if r, ok := m.(daemon.ActivityResult); ok && r.Type == daemon.ResultBuildLogLine {
				time.AfterFunc(time.Second, func() { cancel(userGone) })
			}
			return nil
		}, daemon.Outputs{
			Paths: []string{realOut, realOther},
			Take:  func(daemon.PathInfo) (io.Writer, error) { return io.Discard, nil },
		})
		if !errors.Is(err, userGone) {
			t.Fatalf("error = %v", err)
		}
		select {
		case said := <-alive:
			if said != "begun\n" {
				t.Errorf("the builder has written %q", said)
			}
		case <-ctx.Done():
			t.Error("the builder goes on")
		}
	})
}
