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
	w, err := s.server.opts.Spool.Create(*info)
	if err != nil {
		return nil, s.unspooled(info, err)
	}
	defer w.Abort()
	into := &spoolWriter{to: w}
	if err := fill(into); err != nil {
		return nil, err
	}
	if into.failed != nil {
		return nil, s.unspooled(info, into.failed)
	}
	pin, err := w.Commit()
	if err != nil {
		return nil, s.unspooled(info, err)
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

// spoolWriter swallows what the spool does not take. Only content that is wrong is
// an error.
type spoolWriter struct {
	to     io.Writer
	failed error
}

// Write implements io.Writer.
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

func isMismatch(err error) bool {
	var mismatch *spool.MismatchError
	return errors.As(err, &mismatch)
}
