// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"math/bits"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// Pauses after a builder that was free could not be opened.
const (
	firstReplace = 50 * time.Millisecond
	maxReplace   = 5 * time.Second
)

// unknownSize is what an input counts in bytes whose size is not known.
const unknownSize = 1 << 20

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

// presence weighs, for every builder, the inputs that are known to be on it or on
// their way. It grows by one when their size doubles: builders that have nearly the
// same are equal, and less than a MiB counts as nothing, because that is sent in no
// time. An input that is on other builders only counts as a MiB.
func (s *supplier) presence() map[string]int {
	sizes := map[string]uint64{}
	sum := uint64(0)
	for _, path := range s.inputs.available() {
		size := uint64(unknownSize)
		if pin := s.inputs.pins[path]; pin != nil {
			size = pin.Info().NARSize
		}
		sizes[path] = size
		sum += size
	}
	if sum < unknownSize {
		return nil
	}
	present := map[string]int{}
	usable, _ := s.candidates()
	for _, id := range usable {
		known, kept := s.server.opts.Builders.Known(id), s.holds.keptOn(id)
		there := uint64(0)
		for path, size := range sizes {
			if kept(path) || known(path) || s.forward.brings(id, path) {
				there += size
			}
		}
		if weight := bits.Len64(there / unknownSize); weight > 0 {
			present[id] = weight
		}
	}
	return present
}

// place waits for a slot and opens a session, telling the user what it waits for.
// A builder that cannot be opened is down, and the next one is tried.
func (s *supplier) place(ctx context.Context, r scheduler.Request) (*placement, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.server.draining, func() { cancel(context.Cause(s.server.draining)) })()
	began, before := time.Now(), r.Waited
	for pause := firstReplace; ; pause = min(2*pause, maxReplace) {
		r.Present, r.Waited = s.presence(), before+time.Since(began)
		lease, err := s.server.opts.Scheduler.Acquire(ctx, r, func(w scheduler.Waiting) {
			s.sendAhead(r)
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
		// Why it is down is in the log already, once for all that wait for it.
		s.log.Debug("Builder could not be used", "builder", lost.Builder, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
