// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
)

func TestStreamsBothWays(t *testing.T) {
	t.Parallel()
	s := start(t)
	const size = 3<<20 + 17 // no multiple of any buffer
	up, down := noise(1, size), noise(2, size)

	var g errgroup.Group
	g.Go(func() error { // Nix writes, and closes its end
		if _, err := s.byNix.Write(up); err != nil {
			return err
		}
		return s.byNix.Close()
	})
	g.Go(func() error { // the dispatcher writes at the same time
		_, err := s.server.Write(down)
		return err
	})
	var gotUp, gotDown []byte
	g.Go(func() (err error) {
		if gotUp, err = io.ReadAll(s.server); err != nil {
			return err
		}
		// Only now that Nix has ended its stream comes the last word.
		if _, err := s.server.Write([]byte("last word")); err != nil {
			return err
		}
		return s.server.Close()
	})
	g.Go(func() (err error) {
		gotDown, err = io.ReadAll(s.toNix)
		return err
	})
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(gotUp) != sha256.Sum256(up) {
		t.Errorf("the dispatcher got %d bytes that differ from the %d sent", len(gotUp), len(up))
	}
	if want := append(down, "last word"...); sha256.Sum256(gotDown) != sha256.Sum256(want) {
		t.Errorf("Nix got %d bytes that differ from the %d sent", len(gotDown), len(want))
	}
	if got := end(t, s.cmd); got != (result{}) {
		t.Errorf("helper ended with %+v, want status 0 and silence", got)
	}
}

func TestDispatcherEndsItsStreamFirst(t *testing.T) {
	t.Parallel()
	s := start(t)
	if err := s.server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(s.toNix); err != nil || len(rest) != 0 {
		t.Fatalf("Nix read %q, %v, want the end of the stream", rest, err)
	}
	// The other direction is still open.
	if _, err := s.byNix.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	_ = s.byNix.Close()
	if got, err := io.ReadAll(s.server); err != nil || string(got) != "still here" {
		t.Errorf("the dispatcher got %q, %v", got, err)
	}
	wantLost(t, end(t, s.cmd))
}

func TestDispatcherDies(t *testing.T) {
	t.Parallel()
	tests := map[string]func(s *session) error{
		"idle": func(s *session) error { return s.server.Close() },
		"with unread data, which resets the connection": func(s *session) error {
			if _, err := s.byNix.Write([]byte("never read")); err != nil {
				return err
			}
			var peek [1]byte
			if _, err := io.ReadFull(s.server, peek[:]); err != nil { // the rest has arrived too
				return err
			}
			return s.server.Close()
		},
		"while Nix keeps sending": func(s *session) error {
			if err := s.server.Close(); err != nil {
				return err
			}
			for { // until the helper stops reading
				if _, err := s.byNix.Write(make([]byte, bufferSize)); err != nil {
					return nil
				}
			}
		},
	}
	for name, die := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			if err := die(s); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(s.toNix); err != nil {
				t.Error(err)
			}
			_ = s.byNix.Close()
			wantLost(t, end(t, s.cmd))
		})
	}
}

// wantLost checks the one message for a dispatcher that went away.
func wantLost(t *testing.T, got result) {
	t.Helper()
	if got.code != 1 || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, "ended the connection") {
		t.Errorf("helper ended with %+v, want status 1 and one line about the ended connection", got)
	}
}

// In the middle of an archive the dispatcher can tell Nix nothing, so it tells the
// helper that asks.
func TestDispatcherHasAReason(t *testing.T) {
	t.Parallel()
	s := start(t)
	if _, err := s.server.Write([]byte("half of an archi")); err != nil {
		t.Fatal(err)
	}
	_ = s.server.Close()
	again, header := accept(t, s.listener)
	if want := s.header; !header.Inquiry || header.Hook != want.Hook || header.Namespace != want.Namespace {
		t.Errorf("it asks with %+v, want an inquiry for %+v", header, want)
	}
	if _, err := again.Write([]byte("the builder burns")); err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
	if _, err := io.ReadAll(s.toNix); err != nil {
		t.Error(err)
	}
	_ = s.byNix.Close()
	if got := end(t, s.cmd); got.code != 1 || got.stderr != "nix-dispatch-connect: the builder burns\n" {
		t.Errorf("helper ended with %+v, want status 1 and the reason", got)
	}
}

func TestNixDies(t *testing.T) {
	t.Parallel()
	s := start(t)
	_ = s.toNix.Close() // but the writing end of standard input stays open
	if _, err := s.server.Write([]byte("nobody reads this")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s.server); err != nil {
		t.Errorf("the dispatcher read %v, want the end of the stream", err)
	}
	if got := end(t, s.cmd); got.code == 0 || got.stderr != "" {
		t.Errorf("helper ended with %+v, want a failure without words", got)
	}
}

// Standard input and output can be one socket, whose halves end apart.
func TestOneSocketForBothStreams(t *testing.T) {
	t.Parallel()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[0]), "helper's end")
	mine := os.NewFile(uintptr(fds[1]), "Nix's end")
	nix, err := net.FileConn(mine)
	_ = mine.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nix.Close() }()

	l, path := listen(t)
	cmd := helperCommand(t, path, "--stdio", "--store", "c.0")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	server, _ := accept(t, l)

	if err := nix.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(server); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	if got, err := io.ReadAll(nix); err != nil || string(got) != "answer" {
		t.Errorf("Nix got %q, %v", got, err)
	}
	if got := end(t, cmd); got != (result{}) {
		t.Errorf("helper ended with %+v, want status 0 and silence", got)
	}
}

func noise(seed uint64, size int) []byte {
	out := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(out)
	return out
}
