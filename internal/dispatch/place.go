// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// Pauses after a builder that was free could not be opened.
const (
	firstReplace = 50 * time.Millisecond
	maxReplace   = 5 * time.Second
)

// placement is a slot on a builder and a session there.
type placement struct {
	builder string
	lease   *scheduler.Lease
	session Builder
	// has are paths that are known to be on the builder and to stay there as
	// long as the session.
	has map[string]bool
	// bound is set when inputs are on this builder only.
	bound bool
}

func (p *placement) release() {
	p.session.Close()
	p.lease.Release()
}

// place waits for a slot and opens a session, telling the user what it waits for.
// A builder that cannot be opened is down, and the next one is tried.
func (s *supplier) place(ctx context.Context, r scheduler.Request) (*placement, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.server.draining, func() { cancel(context.Cause(s.server.draining)) })()
	began := time.Now()
	for pause := firstReplace; ; pause = min(2*pause, maxReplace) {
		lease, err := s.server.opts.Scheduler.Acquire(ctx, r, func(w scheduler.Waiting) {
			if err := s.waits(w); err != nil {
				cancel(err)
			}
		})
		if err != nil {
			return nil, err
		}
		session, err := s.server.opts.Builders.Open(ctx, lease.Builder)
		if err == nil {
			s.server.opts.Recorder.Waited(r.Class, time.Since(began))
			return &placement{builder: lease.Builder, lease: lease, session: session, has: map[string]bool{}}, nil
		}
		lease.Release()
		var lost *fleet.LostError
		if !errors.As(err, &lost) {
			return nil, err
		}
		s.log.Info("Builder could not be used", "builder", lost.Builder, "phase", PhaseQueued, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
