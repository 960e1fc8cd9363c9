// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package spool

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// MismatchError is a NAR that is not what its path info says.
type MismatchError struct {
	// Path is the store path.
	Path string
	// Detail compares what came with what was announced.
	Detail string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("contents of %s are not what its path info says: %s", e.Path, e.Detail)
}

// Writer takes one NAR. It must be ended by Commit or Abort. But for Follow it is
// not safe for concurrent use.
type Writer struct {
	store *Store
	info  daemon.PathInfo
	file  *os.File
	hash  hash.Hash
	size  int64
	ended bool
	// progress is shared with the followers, and outlives the Writer with them.
	progress *progress
}

// Create reserves room for the NAR that info describes. With [ErrNoRoom]
// nothing has changed.
func (s *Store) Create(info daemon.PathInfo) (*Writer, error) {
	if info.NARSize > math.MaxInt64 {
		return nil, ErrNoRoom
	}
	name, err := s.reserve(int64(info.NARSize))
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		if err = allocate(file, int64(info.NARSize)); err == nil {
			return &Writer{store: s, info: info, file: file, hash: sha256.New(), progress: newProgress()}, nil
		}
		file.Close()
		s.remove(name)
	}
	s.unreserve(int64(info.NARSize))
	s.failed()
	return nil, fmt.Errorf("spool %s: %w", info.Path, err)
}

// Write appends to the NAR. More bytes than announced are a *MismatchError.
func (w *Writer) Write(p []byte) (int, error) {
	if uint64(len(p)) > w.info.NARSize-uint64(w.size) {
		return 0, w.fail(&MismatchError{Path: w.info.Path, Detail: fmt.Sprintf("they are more than %d bytes", w.info.NARSize)})
	}
	n, err := w.file.Write(p)
	w.progress.grow(n)
	w.hash.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		w.store.failed()
		return n, w.fail(fmt.Errorf("spool %s: %w", w.info.Path, err))
	}
	return n, nil
}

// fail tells the followers of a NAR that will not become complete, and returns
// err.
func (w *Writer) fail(err error) error {
	w.progress.end(err)
	return err
}

// Commit checks size and hash and makes the NAR visible, pinned. If the path
// was added by someone else meanwhile, the pin is on theirs.
func (w *Writer) Commit() (*Pin, error) {
	defer w.Abort()
	if uint64(w.size) != w.info.NARSize {
		return nil, w.fail(&MismatchError{
			Path:   w.info.Path,
			Detail: fmt.Sprintf("they have %d bytes instead of %d", w.size, w.info.NARSize),
		})
	}
	if got := hex.EncodeToString(w.hash.Sum(nil)); got != w.info.NARHash {
		return nil, w.fail(&MismatchError{
			Path:   w.info.Path,
			Detail: fmt.Sprintf("their hash is sha256:%s instead of sha256:%s", got, w.info.NARHash),
		})
	}
	if err := w.file.Close(); err != nil {
		w.store.failed()
		return nil, w.fail(fmt.Errorf("spool %s: %w", w.info.Path, err))
	}
	w.progress.end(io.EOF)
	pin, inserted := w.store.insert(w.info, w.file.Name())
	w.ended = inserted
	return pin, nil
}

// Abort drops the NAR and its reservation. After Commit it does nothing.
func (w *Writer) Abort() {
	if w.ended {
		return
	}
	w.ended = true
	w.progress.end(fmt.Errorf("spool %s: %w", w.info.Path, ErrAborted))
	if err := w.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		w.store.log.Warn("Spool file was not closed", "path", w.info.Path, "error", err)
	}
	w.store.remove(w.file.Name())
	w.store.unreserve(int64(w.info.NARSize))
}
