// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// floorDir is the part of the shared directory with the floor's program and
// sockets.
const floorDir = "floor"

// joinPort is where the far end of a slow floor waits.
const joinPort = "7"

// floor is the cheapest way to the first builder: a helper, and the builder's
// nix-daemon behind a socket. Without a delay it is the daemon's own socket; on a
// slow line a TCP connection for each build leads there.
func (s *site) floor(ctx context.Context, kind lineKind, slots int) (w way, closeFloor func(), err error) {
	dir := filepath.Join(s.shared, floorDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return way{}, nil, err
	}
	if err := copyFile(filepath.Join(dir, "helper"), filepath.Join(s.programs, "floorhelper")); err != nil {
		return way{}, nil, err
	}
	socket := filepath.Join(dir, kind.name+".sock")
	_ = os.Remove(socket) // of an earlier section
	closeFloor = func() {}
	if kind.quality.RoundTrip == 0 {
		err = os.Link(s.stations[0].daemonSocket(), socket)
	} else {
		closeFloor, err = s.join(ctx, socket, kind)
	}
	if err != nil {
		return way{}, nil, fmt.Errorf("floor: %w", err)
	}
	// As many lines as slots, because uploads by one line wait for each other.
	var lines strings.Builder
	for i := range slots {
		fmt.Fprintf(&lines, "ssh-ng://localhost?remote-program=%s/%s/helper&remote-store=%s.%d %s - 1 1 - - -\n",
			nixlab.VolumePath, floorDir, kind.name, i, nixlab.System())
	}
	file := "/etc/nix/machines.floor-" + kind.name
	if err := s.client.WriteFile(file, lines.String(), 0o644); err != nil {
		closeFloor()
		return way{}, nil, err
	}
	return way{name: figures.Floor, builders: "@" + file}, closeFloor, nil
}

// join serves a socket whose connections go through the line to the builder's
// nix-daemon.
func (s *site) join(ctx context.Context, socket string, kind lineKind) (closeJoin func(), err error) {
	b := s.stations[0]
	address := net.JoinHostPort(b.ip(kind), joinPort)
	near, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	var far net.Listener
	if err := b.network.Do(func() (err error) { far, err = net.Listen("tcp", address); return err }); err != nil {
		near.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	j := &joiner{ctx: ctx}
	j.group.Go(func() {
		j.serve(far, func() (net.Conn, error) { return net.Dial("unix", b.daemonSocket()) })
	})
	j.group.Go(func() {
		j.serve(near, func() (conn net.Conn, err error) {
			err = s.network.Do(func() error { conn, err = net.Dial("tcp", address); return err })
			return conn, err
		})
	})
	return func() {
		cancel()
		near.Close()
		far.Close()
		j.group.Wait()
	}, nil
}

// joiner joins connections one to one.
type joiner struct {
	ctx   context.Context
	group sync.WaitGroup
}

func (j *joiner) serve(listener net.Listener, dial func() (net.Conn, error)) {
	for {
		one, err := listener.Accept()
		if err != nil {
			return
		}
		j.group.Go(func() {
			defer one.Close()
			other, err := dial()
			if err != nil {
				return
			}
			defer other.Close()
			stop := context.AfterFunc(j.ctx, func() { one.Close(); other.Close() })
			defer stop()
			var group sync.WaitGroup
			group.Go(func() { pour(one, other) })
			group.Go(func() { pour(other, one) })
			group.Wait()
		})
	}
}

// pour copies until the source ends, and passes its end on.
func pour(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	half, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		dst.Close()
	}
}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	// The program may be running for a build that has just ended.
	return errors.Join(os.WriteFile(to+".new", data, 0o755), os.Rename(to+".new", to))
}
