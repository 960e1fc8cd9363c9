// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nixbuilder.io/nix-builder-operator/internal/connect"
)

// asHelper makes the test binary behave as the helper, so that tests run a
// real process with real streams.
const asHelper = "NIX_DISPATCH_CONNECT_TEST_AS_HELPER"

// patience bounds every wait of these tests.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(asHelper) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// helperCommand is the helper as Nix would call it, for the socket at path.
func helperCommand(t *testing.T, path string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = []string{asHelper + "=1", socketVariable + "=" + path}
	cmd.WaitDelay = patience
	return cmd
}

// result is how a helper ended, and what it told Nix to show.
type result struct {
	code   int
	stderr string
}

// end waits for a started helper.
func end(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var stderr strings.Builder
	for line := range strings.Lines(cmd.Stderr.(*bytes.Buffer).String()) {
		text, ok := spoken(line)
		if !ok || !strings.HasPrefix(text, "nix-dispatch-connect: ") {
			t.Errorf("standard error has the line %q, which is no message of Nix's log that begins with the program's name", line)
		}
		stderr.WriteString(text + "\n")
	}
	return result{code: cmd.ProcessState.ExitCode(), stderr: stderr.String()}
}

// listen is a dispatcher's socket in a fresh directory.
func listen(t *testing.T) (*net.UnixListener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), connect.SocketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return l, path
}

// accept takes the next connection and its header.
func accept(t *testing.T, l *net.UnixListener) (*net.UnixConn, connect.Header) {
	t.Helper()
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	header, err := connect.Decode(c)
	if err != nil {
		t.Fatal(err)
	}
	return c, header
}

// session is a started helper with both of its ends.
type session struct {
	cmd    *exec.Cmd
	toNix  *os.File // what the helper writes
	byNix  *os.File // what the helper reads
	server *net.UnixConn
	header connect.Header
	// listener is the dispatcher's, for further connections.
	listener *net.UnixListener
}

func start(t *testing.T) *session {
	t.Helper()
	l, path := listen(t)
	cmd := helperCommand(t, path, "--stdio", "--store", "x86_64-linux.3")
	stdin, byNix := pipe(t)
	toNix, stdout := pipe(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = stdin.Close()
	_ = stdout.Close()
	s := &session{cmd: cmd, toNix: toNix, byNix: byNix, listener: l}
	s.server, s.header = accept(t, l)
	return s
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}
