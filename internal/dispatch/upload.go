// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"errors"
	"fmt"
	"io"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// addMultipleToStore answers operation 44: everything goes into the spool, where
// it is checked. What has no room there goes straight to a builder.
func (s *session) addMultipleToStore(r *daemon.AddMultipleToStore) error {
	for {
		info, archive, err := r.Next()
		if errors.Is(err, io.EOF) {
			return s.daemon.ReplyDone()
		}
		if err != nil {
			return err
		}
		if err := s.receive(info, archive); err != nil {
			return err
		}
	}
}

// receive takes one path of an upload.
func (s *session) receive(info *daemon.PathInfo, archive io.Reader) error {
	if s.inputs.add(info.Path) {
		return nil // another session was faster; Next skips the archive
	}
	w, err := s.server.opts.Spool.Create(*info)
	if errors.Is(err, spool.ErrNoRoom) {
		return s.forward(info, archive)
	}
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := io.Copy(w, archive); err != nil {
		return err
	}
	pin, err := w.Commit()
	if err != nil {
		return err
	}
	s.inputs.put(pin)
	return nil
}

// forward sends a path for which the spool has no room straight to a builder,
// waiting for one if need be. From then on the build is bound to that builder.
//
// A client that leaves meanwhile is noticed when the next waiting line cannot be
// sent: its upload is still on the wire, so its end cannot be read.
func (s *session) forward(info *daemon.PathInfo, archive io.Reader) error {
	if s.bound == nil {
		p, err := s.place(s.ctx, scheduler.Request{Class: s.class, Key: info.Path})
		if err != nil {
			return err
		}
		p.bound = true
		s.bound = p
		s.log.Warn("Spool has no room: upload goes straight to a builder", "builder", p.builder, "path", info.Path, "bytes", info.NARSize)
		if err := s.say(fmt.Sprintf("no room in the dispatcher's spool: uploading to %s directly (if it is lost, the build fails)", p.builder)); err != nil {
			return err
		}
	}
	// What it refers to is among the paths that came before, and may be in the
	// spool or on other builders only.
	if err := s.supply(s.ctx, s.bound, s.inputs.available()); err != nil {
		return err
	}
	err := s.bound.session.AddMultipleToStore(s.ctx, daemon.PathSource{
		Count: 1,
		Next:  func() (daemon.PathInfo, io.Reader, error) { return *info, archive, nil },
	}, s.daemon.Send)
	if err != nil {
		return err
	}
	s.inputs.present[info.Path] = true
	s.bound.has[info.Path] = true
	return nil
}
