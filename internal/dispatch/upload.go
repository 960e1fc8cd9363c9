// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// replayable is the size up to which an upload is kept in memory until it is in the
// spool. For larger ones the spool takes disk space ahead, so that a full disk shows
// before the first byte was read.
const replayable = 1 << 20

// addMultipleToStore answers operation 44: everything goes into the spool, where
// it is checked. What has no room there goes straight to a builder.
func (s *session) addMultipleToStore(r *daemon.AddMultipleToStore) error {
	for {
		s.attend()
		info, archive, err := r.Next()
		if errors.Is(err, io.EOF) {
			s.relax()
			return s.daemon.ReplyDone()
		}
		if err != nil {
			return s.stalled(err)
		}
		if err := s.receive(info, attentive{s, archive}); err != nil {
			return err
		}
	}
}

// receive takes one path of an upload.
func (s *session) receive(info *daemon.PathInfo, archive io.Reader) error {
	if err := s.supplier.inputs.admit(info.Path); err != nil {
		return err
	}
	if s.supplier.inputs.add(info.Path) {
		s.supplier.foresee(s.supplier.ahead(*info))
		return nil // another session was faster; Next skips the archive
	}
	replay := archive
	if info.NARSize <= replayable {
		content, err := io.ReadAll(io.LimitReader(archive, replayable+1))
		if err != nil {
			return err
		}
		archive, replay = bytes.NewReader(content), bytes.NewReader(content)
	}
	w, err := s.supplier.create(info)
	if err != nil {
		return s.unspooled(info, replay, err)
	}
	defer w.to.Abort()
	s.supplier.spooling(info, w.to)
	if err := inPieces(w, archive, info.NARSize); err != nil {
		return err
	}
	pin, err := w.commit()
	if err != nil && info.NARSize <= replayable {
		return s.unspooled(info, replay, err)
	}
	if err == nil {
		s.supplier.inputs.put(pin)
	}
	return err
}

// unspooled sends a path that is not in the spool to a builder. Other errors than that
// of the spool are the upload's.
func (s *session) unspooled(info *daemon.PathInfo, archive io.Reader, err error) error {
	if errors.Is(err, errUnspooled) {
		return s.supplier.sendThrough(s.ctx, info, archive, err)
	}
	return err
}

// sendThrough sends a path that is not in the spool, because of why, straight to a builder,
// waiting for one if need be. From then on the build is bound to that builder.
//
// A client that leaves meanwhile is noticed when the next waiting line cannot be
// sent: its upload is still on the wire, so its end cannot be read.
func (s *supplier) sendThrough(ctx context.Context, info *daemon.PathInfo, archive io.Reader, why error) error {
	if s.bound == nil {
		p, err := s.place(ctx, scheduler.Request{Class: s.class, Key: info.Path})
		if err != nil {
			return err
		}
		p.bound = true
		s.bound = p
		s.log.Warn("Upload goes straight to a builder", "builder", p.builder, "path", info.Path, "bytes", info.NARSize, "error", why)
		reason := "no room in the dispatcher's spool"
		if !errors.Is(why, spool.ErrNoRoom) {
			reason = "the dispatcher's spool has failed"
		}
		if err := s.say(fmt.Sprintf("%s: uploading to %s directly (if it is lost, the build fails)", reason, p.builder)); err != nil {
			return err
		}
	}
	// What it refers to is among the paths that came before, and may be in the
	// spool or on other builders only.
	if err := s.supply(ctx, s.bound, s.inputs.available()); err != nil {
		return err
	}
	sent := *info
	sent.Ultimate = false // the builder has not built it
	err := s.bound.session.AddMultipleToStore(ctx, daemon.PathSource{
		Count: 1,
		Next:  func() (daemon.PathInfo, io.Reader, error) { return sent, archive, nil },
	}, s.relay)
	if err != nil {
		return err
	}
	s.inputs.present[info.Path] = true
	s.bound.has[info.Path] = true
	return nil
}
