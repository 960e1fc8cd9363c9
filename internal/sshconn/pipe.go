// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"io"
	"os"
	"sync"
	"time"
)

const (
	// firstPipe is what a pipe holds at first, maxPipe what it grows to when its reader
	// does not keep up: then the two sides of a transfer work at the same time instead
	// of taking turns.
	firstPipe = 16 << 10
	maxPipe   = 256 << 10
)

// pipe is a stream between two goroutines, like that of [io.Pipe] but with a buffer.
// One goroutine reads and one writes; both ends may be closed by anyone.
type pipe struct {
	mu sync.Mutex
	// moved is signalled when anything below changes.
	moved sync.Cond
	// ring holds n bytes from index r on.
	ring []byte
	r, n int
	// readErr is what a reader gets once the ring is empty, writeErr what a writer
	// gets.
	readErr, writeErr error
	// reading and writing limit the waits of reader and writer.
	reading, writing limit
}

// limit is a point in time from which on one end of a pipe fails with
// [os.ErrDeadlineExceeded]. The pipe's lock guards it.
type limit struct {
	timer  *time.Timer
	passed bool
}

// setLimit moves a limit of the pipe; the zero time takes it away.
func (p *pipe) setLimit(l *limit, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	l.passed = false
	if wait := time.Until(at); !at.IsZero() && wait <= 0 {
		l.passed = true
	} else if !at.IsZero() {
		var timer *time.Timer
		timer = time.AfterFunc(wait, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if l.timer == timer { // and no other limit was set meanwhile
				l.passed = true
				p.moved.Broadcast()
			}
		})
		l.timer = timer
	}
	p.moved.Broadcast()
}

func newPipe() *pipe {
	p := &pipe{}
	p.moved.L = &p.mu
	return p
}

// closeWrite ends the stream for the reader with err, io.EOF if that is nil, after
// what is in the pipe.
func (p *pipe) closeWrite(err error) {
	if err == nil {
		err = io.EOF
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.close(err, io.ErrClosedPipe)
}

// closeRead makes the writer fail with err, and the reader with [io.ErrClosedPipe].
// What is in the pipe is dropped.
func (p *pipe) closeRead(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n, p.readErr = 0, io.ErrClosedPipe
	p.close(io.ErrClosedPipe, err)
}

// close sets what reader and writer get, unless an earlier close has. The lock is
// held.
func (p *pipe) close(readErr, writeErr error) {
	if p.readErr == nil {
		p.readErr = readErr
	}
	if p.writeErr == nil {
		p.writeErr = writeErr
	}
	p.moved.Broadcast()
}

// filled waits for bytes and returns a part of them that is in one piece.
func (p *pipe) filled() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.readErr != nil && p.n == 0:
			return nil, p.readErr
		case p.reading.passed:
			return nil, os.ErrDeadlineExceeded
		case p.n > 0:
			return p.ring[p.r:min(p.r+p.n, len(p.ring))], nil
		}
		p.moved.Wait()
	}
}

// taken takes k bytes out that filled has returned.
func (p *pipe) taken(k int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == 0 {
		return // dropped meanwhile
	}
	p.n -= k
	p.r = (p.r + k) % len(p.ring)
	p.moved.Broadcast()
}

// free waits for room and returns a part of it that is in one piece.
func (p *pipe) free() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.writeErr != nil {
			return nil, p.writeErr
		}
		if p.writing.passed {
			return nil, os.ErrDeadlineExceeded
		}
		if p.n == len(p.ring) && p.n < maxPipe {
			p.grow()
		}
		if p.n < len(p.ring) {
			break
		}
		p.moved.Wait()
	}
	w := (p.r + p.n) % len(p.ring)
	if w < p.r {
		return p.ring[w:p.r], nil
	}
	return p.ring[w:], nil
}

// grow makes a full ring larger. A reader at work keeps what it has of the old one.
// The lock is held.
func (p *pipe) grow() {
	ring := make([]byte, min(max(firstPipe, 4*len(p.ring)), maxPipe))
	k := copy(ring, p.ring[p.r:])
	copy(ring[k:], p.ring[:p.r])
	p.ring, p.r = ring, 0
}

// added puts k bytes in that were written to what free has returned.
func (p *pipe) added(k int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writeErr == nil {
		p.n += k
		p.moved.Broadcast()
	}
}

// Read implements io.Reader.
func (p *pipe) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	from, err := p.filled()
	if err != nil {
		return 0, err
	}
	n := copy(b, from)
	p.taken(n)
	return n, nil
}

// Write implements io.Writer. It returns when everything is in the pipe.
func (p *pipe) Write(b []byte) (int, error) {
	total := 0
	for len(b) > 0 {
		to, err := p.free()
		if err != nil {
			return total, err
		}
		n := copy(to, b)
		p.added(n)
		b = b[n:]
		total += n
	}
	return total, nil
}

// WriteTo implements io.WriterTo: dst is given what is in the pipe without a copy.
func (p *pipe) WriteTo(dst io.Writer) (int64, error) {
	var total int64
	for {
		from, err := p.filled()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := dst.Write(from)
		total += int64(n)
		p.taken(n)
		if err != nil {
			return total, err
		}
	}
}

// ReadFrom implements io.ReaderFrom: src reads into the pipe without a copy.
func (p *pipe) ReadFrom(src io.Reader) (int64, error) {
	var total int64
	for {
		to, err := p.free()
		if err != nil {
			return total, err
		}
		n, err := src.Read(to)
		total += int64(n)
		p.added(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
