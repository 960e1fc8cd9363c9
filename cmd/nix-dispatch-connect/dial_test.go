// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
)

func TestNoDispatcher(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		socket func(t *testing.T) string
		want   string
	}{
		"never started": {
			socket: func(t *testing.T) string { return filepath.Join(t.TempDir(), connect.SocketName) },
			want:   "there is no dispatcher socket /",
		},
		"stopped": {
			socket: func(t *testing.T) string {
				l, path := listen(t)
				l.SetUnlinkOnClose(false)
				_ = l.Close()
				return path
			},
			want: "nobody listens on /",
		},
		"path too long": {
			socket: func(*testing.T) string { return "/" + strings.Repeat("long/", 30) + connect.SocketName },
			want:   "which has at most 107 bytes",
		},
		"not a socket": {
			socket: func(t *testing.T) string {
				path := filepath.Join(t.TempDir(), "file")
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				return path
			},
			want: "nobody listens on /",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := helperCommand(t, tc.socket(t), "--stdio", "--store", "c.0")
			cmd.Stderr = new(bytes.Buffer)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			got := end(t, cmd)
			if got.code != 1 || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, tc.want) {
				t.Errorf("helper ended with %+v, want status 1 and one line with %q", got, tc.want)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	tests := map[error]string{
		syscall.EACCES:  "may not connect to /d/s",
		syscall.EAGAIN:  "did not accept the connection within 10s",
		syscall.ENOTDIR: "cannot connect to /d/s: not a directory",
	}
	for err, want := range tests {
		if got := explain("/d/s", err).Error(); !strings.Contains(got, want) {
			t.Errorf("explain(%v) = %q, want it to contain %q", err, got, want)
		}
	}
}

func TestConnectGivesUpOnAFullBacklog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "full.sock")
	server := socket(t)
	if err := syscall.Bind(server, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(server, 0); err != nil {
		t.Fatal(err)
	}
	var err error
	for range 3 { // a backlog of 0 holds one connection
		if err = connectWithin(socket(t), path, 50*time.Millisecond); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("error = %v, want %v", err, syscall.EAGAIN)
	}
}

func socket(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	return fd
}

// Without flag and variable the socket is the one beside the program.
func TestSocketBesideTheProgram(t *testing.T) {
	t.Parallel()
	l, path := listen(t)
	program := filepath.Join(filepath.Dir(path), "nix-dispatch-connect")
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, self, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := startWritten(t, program, "--stdio", "--store", "c.0")
	server, _ := accept(t, l)
	_ = server.Close()
	_ = end(t, cmd)
}

// startWritten starts a program this process has just written. It tries again
// while a child forked by a parallel test holds the file open for writing,
// which lasts until that child executes its own program.
func startWritten(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	for {
		cmd := exec.Command(program, args...)
		cmd.Env = []string{asHelper + "=1"}
		cmd.Stderr = new(bytes.Buffer)
		err := cmd.Start()
		if err == nil {
			return cmd
		}
		if !errors.Is(err, syscall.ETXTBSY) {
			t.Fatal(err)
		}
	}
}

func TestSocketFlagWins(t *testing.T) {
	t.Parallel()
	l, path := listen(t)
	cmd := helperCommand(t, "/nowhere", "--socket="+path, "--stdio", "--store", "c.0")
	cmd.Stderr = new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	server, _ := accept(t, l)
	_ = server.Close()
	_ = end(t, cmd)
}

func TestCause(t *testing.T) {
	t.Parallel()
	if got := cause(&os.PathError{Op: "read", Path: "/d/s", Err: syscall.ECONNRESET}); got != "connection reset by peer" {
		t.Errorf("cause = %q", got)
	}
	if got := cause(net.ErrClosed); got != net.ErrClosed.Error() {
		t.Errorf("cause = %q", got)
	}
}

// The program must run in images without a C library, and start fast.
func TestStaysSmall(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		switch pkg {
		case "fmt", "net", "flag", "reflect", "log", "encoding/binary", "os/exec":
			t.Errorf("the program links %s", pkg)
		}
	}

	path := filepath.Join(t.TempDir(), "nix-dispatch-connect")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const most = 2 << 20
	if info, err := os.Stat(path); err != nil || info.Size() > most {
		t.Errorf("the program has %d bytes, %v, want at most %d", info.Size(), err, most)
	}
	program, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("the program needs a dynamic loader")
		}
	}
}
