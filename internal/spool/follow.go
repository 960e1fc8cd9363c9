// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// ErrAborted ends the followers of a NAR that did not become complete.
var ErrAborted = errors.New("the NAR did not become complete")

// progress is how far a writer has got. Its followers wait for it.
type progress struct {
	mu sync.Mutex
	// moved is signalled when anything below changes, and when a follower closes.
	moved sync.Cond
	// size is how many bytes of the file can be read.
	size int64
	// done is set when size grows no more: err then says why, io.EOF if the NAR
	// is complete.
	done bool
	err  error
}

func newProgress() *progress {
	p := &progress{}
	p.moved.L = &p.mu
	return p
}

func (p *progress) grow(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size += int64(n)
	p.moved.Broadcast()
}

// end wakes all followers for good. Only the first call counts.
func (p *progress) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.done {
		p.done, p.err = true, err
		p.moved.Broadcast()
	}
}

// Follow returns a reader of the NAR that waits for what is not yet written. It
// ends with io.EOF once Commit has found the NAR to be what its path info says,
// and with an error as soon as it is known that it will not be: what was read may
// then be wrong. It stays readable whatever becomes of the NAR in the spool, and
// is safe for use beside the Writer's other methods. Close ends a Read that waits.
func (w *Writer) Follow() (io.ReadCloser, error) {
	w.progress.mu.Lock()
	defer w.progress.mu.Unlock()
	if w.progress.done && w.progress.err != io.EOF {
		return nil, w.progress.err
	}
	file, err := os.Open(w.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrAborted // evicted since
	}
	if err != nil {
		return nil, fmt.Errorf("follow %s in the spool: %w", w.info.Path, err)
	}
	return &follower{progress: w.progress, file: file}, nil
}

// follower reads a file up to where its writer is. Read is for one goroutine.
type follower struct {
	progress *progress
	file     *os.File
	off      int64
	// closed is guarded by the lock of progress.
	closed bool
}

// Read implements io.Reader.
func (f *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	there, err := f.wait()
	if err != nil {
		return 0, err
	}
	n, err := f.file.ReadAt(p[:min(int64(len(p)), there)], f.off)
	f.off += int64(n)
	if n > 0 {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // somebody has cut the file
	}
	return 0, fmt.Errorf("follow in the spool: %w", err)
}

// wait returns how many bytes can be read, or how the NAR has ended.
func (f *follower) wait() (int64, error) {
	p := f.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case f.closed:
			return 0, os.ErrClosed
		case p.done && p.err != io.EOF:
			return 0, p.err
		case p.size > f.off:
			return p.size - f.off, nil
		case p.done:
			return 0, io.EOF
		}
		p.moved.Wait()
	}
}

// Close implements io.Closer.
func (f *follower) Close() error {
	f.progress.mu.Lock()
	closed := f.closed
	f.closed = true
	f.progress.moved.Broadcast()
	f.progress.mu.Unlock()
	if closed {
		return nil
	}
	return f.file.Close()
}
