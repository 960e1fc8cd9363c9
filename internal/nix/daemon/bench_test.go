// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

const (
	benchSize = 1 << 30
	benchPath = "/nix/store/00000000000000000000000000000000-big"
)

// bigNAR is the archive of a file of benchSize zeros, made as it is read.
func bigNAR() (io.Reader, uint64) {
	empty := daemontest.FileNAR(nil)
	head, tail := empty[:len(empty)-24], empty[len(empty)-16:]
	size := binary.LittleEndian.AppendUint64(nil, benchSize)
	return io.MultiReader(bytes.NewReader(head), bytes.NewReader(size), io.LimitReader(zeros{}, benchSize), bytes.NewReader(tail)),
		uint64(len(empty)) + benchSize
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// benchServer takes uploads and hands out the archive, with no work of its own.
func benchServer(b *testing.B, conn net.Conn) {
	srv, err := daemon.Accept(b.Context(), conn, daemon.ServerOptions{Trust: daemon.Trusted})
	if err != nil {
		b.Error(err)
		return
	}
	defer func() { _ = srv.Close() }()
	for {
		req, err := srv.Next()
		if err != nil {
			return
		}
		switch r := req.(type) {
		case *daemon.AddMultipleToStore:
			for err == nil {
				var archive io.Reader
				if _, archive, err = r.Next(); err == nil {
					_, err = io.Copy(io.Discard, archive)
				}
			}
			err = srv.ReplyDone()
		case *daemon.NARFromPath:
			archive, _ := bigNAR()
			err = srv.ReplyNAR(archive)
		}
		if err != nil {
			b.Error(err)
		}
	}
}

// BenchmarkTransfer moves 1 GiB between our two ends over a Unix socket.
func BenchmarkTransfer(b *testing.B) {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go benchServer(b, conn)
		}
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	c, err := daemon.NewClient(b.Context(), conn, daemon.ClientOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	b.Run("up", func(b *testing.B) {
		b.SetBytes(benchSize)
		b.ReportAllocs()
		for b.Loop() {
			err := c.AddMultipleToStore(b.Context(), daemon.PathSource{Count: 1, Next: func() (daemon.PathInfo, io.Reader, error) {
				archive, size := bigNAR()
				return daemon.PathInfo{Path: benchPath, NARHash: daemontest.Hash(nil), NARSize: size}, archive, nil
			}}, nil)
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("down", func(b *testing.B) {
		b.SetBytes(benchSize)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.NARFromPath(b.Context(), benchPath, io.Discard, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
