// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// errStalled means that a client has stopped in the middle of something.
var errStalled = errors.New("the client has stalled")

// attend gives the client a time for its next bytes. It is for when the client keeps
// something from others: a slot, or room in the spool.
func (s *session) attend() {
	// An error is that of a connection which the next read finds closed.
	_ = s.conn.SetReadDeadline(time.Now().Add(s.server.limits.Stall))
}

// relax lets the client take its time again.
func (s *session) relax() { _ = s.conn.SetReadDeadline(time.Time{}) }

// stalled puts our words for the end of the client's time.
func (s *session) stalled(err error) error {
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
