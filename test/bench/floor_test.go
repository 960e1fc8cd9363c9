// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// echo serves connections that get back what they send, once they have sent all.
func echo(t *testing.T, path string) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(conn)
			_, _ = conn.Write(all)
			conn.Close()
		}
	}()
}

func TestJoiner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	far, near := filepath.Join(dir, "far"), filepath.Join(dir, "near")
	echo(t, far)
	listener, err := net.Listen("unix", near)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	j := &joiner{ctx: ctx}
	j.group.Go(func() { j.serve(listener, func() (net.Conn, error) { return net.Dial("unix", far) }) })

	conn, err := net.Dial("unix", near)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}

	idle, err := net.Dial("unix", near)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	cancel()
	listener.Close()
	j.group.Wait() // an open connection does not hold it up
}

func TestFloorHelper(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "helper"), "./floorhelper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	echo(t, filepath.Join(dir, "rtt20.sock"))

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	helper := exec.CommandContext(ctx, filepath.Join(dir, "helper"), "--stdio", "--store", "rtt20.3")
	stdin, err := helper.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = stdin.Write([]byte("hello"))
		stdin.Close()
	}()
	if output, err := helper.Output(); err != nil || string(output) != "hello" {
		t.Errorf("got %q, %v", output, err)
	}

	if err := exec.CommandContext(ctx, filepath.Join(dir, "helper"), "--stdio", "--store", "nothing.0").Run(); err == nil {
		t.Error("a socket that does not exist is no error")
	}
}
