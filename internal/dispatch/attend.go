// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// farewell bounds the last words to a client whose session is cut.
const farewell = time.Second

// errStalled means that a client has stopped in the middle of something.
var errStalled = errors.New("the client has stalled")

// attend gives the client a time for its next bytes. It is for when the client keeps
// something from others: a slot, or room in the spool.
func (s *session) attend() {
	s.readBefore(time.Now().Add(s.server.limits.Stall))
}

// relax lets the client take its time again.
func (s *session) relax() { s.readBefore(time.Time{}) }

// writeBefore gives the client a time to take what is written; the zero time means as long as it likes.
func (s *session) writeBefore(deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		// An error is that of a connection which the next write finds closed.
		_ = s.conn.SetWriteDeadline(deadline)
	}
}

func (s *session) readBefore(deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		// An error is that of a connection which the next read finds closed.
		_ = s.conn.SetReadDeadline(deadline)
	}
}

// setDeadline sets both deadlines, or fails with the reason why the session is cut.
func (s *session) setDeadline(deadline time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return context.Cause(s.ctx)
	}
	return s.conn.SetDeadline(deadline)
}

// cut ends what the session reads at once, and what it writes soon: the client can
// still be told why. Nothing but that ends a read that is under way.
func (s *session) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
	_ = s.conn.SetWriteDeadline(time.Now().Add(farewell))
}

// stalled puts our words for the end of the client's time.
func (s *session) stalled(err error) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: nothing came for %v while its build held a slot or room in the spool", errStalled, s.server.limits.Stall)
	}
	return err
}

// attentive reads an upload from a client that must not stall.
type attentive struct {
	session *session
	from    io.Reader
}

// Read implements io.Reader.
func (a attentive) Read(p []byte) (int, error) {
	a.session.attend()
	n, err := a.from.Read(p)
	return n, a.session.stalled(err)
}

// urgent writes to a client that must not stall: a builder sends meanwhile, and has few
// transfers at the same time.
type urgent struct {
	session *session
	to      io.Writer
}

// Write implements io.Writer.
func (u urgent) Write(p []byte) (int, error) {
	s := u.session
	s.writeBefore(time.Now().Add(s.server.limits.Stall))
	defer s.writeBefore(time.Time{})
	n, err := u.to.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) && s.ctx.Err() == nil {
		err = fmt.Errorf("%w: it took nothing for %v of an output that came from a builder", errStalled, s.server.limits.Stall)
	}
	return n, err
}
