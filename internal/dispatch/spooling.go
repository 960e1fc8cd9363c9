// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"errors"
	"fmt"
	"io"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// errUnspooled means that a NAR is not in the spool, for want of room or because the
// spool has failed. Builds go on without it.
var errUnspooled = errors.New("not in the dispatcher's spool")

// intoSpool puts a NAR that fill writes into the spool. Should the spool fail, fill
// is not disturbed: whoever sends the NAR stays in step.
func (s *supplier) intoSpool(info *daemon.PathInfo, fill func(io.Writer) error) (*spool.Pin, error) {
	w, err := s.create(info)
	if err != nil {
		return nil, err
	}
	defer w.to.Abort()
	if err := fill(w); err != nil {
		return nil, err
	}
	return w.commit()
}

// spoolWriter puts a NAR into the spool. It swallows what the spool does not take.
type spoolWriter struct {
	supplier *supplier
	info     daemon.PathInfo
	to       *spool.Writer
	failed   error
}

// pieceSize is in what pieces a NAR goes through the spool. Clients send smaller ones,
// each of which would cost a write, and wake whoever follows.
const pieceSize = 128 << 10

// inPieces copies src, of that many bytes, to dst in pieces of pieceSize.
func inPieces(dst io.Writer, src io.Reader, size uint64) error {
	piece := make([]byte, min(pieceSize, size+1))
	for {
		n := 0
		var err error
		for n < len(piece) && err == nil {
			var k int
			k, err = src.Read(piece[n:])
			n += k
		}
		if _, failed := dst.Write(piece[:n]); failed != nil {
			return failed
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// create begins to write a NAR to the spool. Whoever has the writer aborts it.
func (s *supplier) create(info *daemon.PathInfo) (*spoolWriter, error) {
	to, err := s.server.opts.Spool.Create(*info)
	if err != nil {
		return nil, s.unspooled(info, err)
	}
	return &spoolWriter{supplier: s, info: *info, to: to}, nil
}

// Write implements io.Writer. Only content that is wrong is an error.
func (w *spoolWriter) Write(p []byte) (int, error) {
	if w.failed != nil {
		return len(p), nil
	}
	n, err := w.to.Write(p)
	if err == nil || isMismatch(err) {
		return n, err
	}
	w.failed = err
	return len(p), nil
}

// commit makes the NAR visible. The error is errUnspooled if the spool has failed.
func (w *spoolWriter) commit() (*spool.Pin, error) {
	if w.failed != nil {
		w.to.Abort()
		return nil, w.supplier.unspooled(&w.info, w.failed)
	}
	pin, err := w.to.Commit()
	if err != nil {
		return nil, w.supplier.unspooled(&w.info, err)
	}
	return pin, nil
}

// unspooled marks failures of the spool, as opposed to those of what it was given.
func (s *supplier) unspooled(info *daemon.PathInfo, err error) error {
	if isMismatch(err) {
		return err
	}
	if !errors.Is(err, spool.ErrNoRoom) {
		s.log.Error("Spool has failed", "path", info.Path, "bytes", info.NARSize, "error", err)
	}
	return fmt.Errorf("%w: %w", errUnspooled, err)
}

func isMismatch(err error) bool {
	var mismatch *spool.MismatchError
	return errors.As(err, &mismatch)
}
