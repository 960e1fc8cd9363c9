// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// idleForward is how long a forward keeps a session while there is nothing to send, such
// as between two uploads of a client.
const idleForward = time.Second

// A forward brings inputs to the builder that will probably get a build, before the
// build has a slot: while the client still uploads them, and while the build waits.
// It is an optimisation of the transfer and nothing else: whatever becomes of it, the
// build's own supply sends what is not there.
type forward struct {
	log     *slog.Logger
	server  *Server
	holds   *holds
	builder string
	// inputs are all paths that the build was known to need when it began, kept those
	// that the builder then had.
	inputs []string
	needs  map[string]bool
	kept   func(string) bool
	cancel context.CancelFunc
	// done is closed when it has ended.
	done chan struct{}
	// wake has room for one: something below has changed.
	wake chan struct{}

	mu sync.Mutex
	// waiting are to be sent, in this order unless what one refers to comes later.
	waiting []parcel
	// offered are all that were ever waiting, and sent those that have arrived.
	offered, sent map[string]bool
	// last is set when nothing more will come, ended when it has ended.
	last, ended bool
}

// spooling tells of an upload that is about to be written to the spool.
func (s *supplier) spooling(info *daemon.PathInfo, w *spool.Writer) {
	s.foresee(parcel{info: *info, open: func() (io.ReadCloser, error) {
		nar, err := w.Follow()
		if errors.Is(err, spool.ErrAborted) {
			// Somebody else has put it there first.
			return s.server.openSpooled(info.Path)
		}
		return nar, err
	}})
}

// foresee begins to send inputs ahead once there is enough to send. The session calls
// it for all that comes into the spool, when that begins.
func (s *supplier) foresee(p parcel) {
	if s.forward != nil && !s.forward.over() {
		s.forward.offer(p)
		return
	}
	s.coming += p.info.NARSize
	if s.coming <= smallTransfer || s.bound != nil {
		return
	}
	s.coming = 0
	// The derivation is not known yet, so an input stands for it.
	s.sendAhead(scheduler.Request{Class: s.class, Key: p.info.Path}, p)
}

// openSpooled returns a reader of a NAR in the spool.
func (s *Server) openSpooled(path string) (io.ReadCloser, error) {
	pin, ok := s.opts.Spool.Pin(path)
	if !ok {
		return nil, os.ErrNotExist
	}
	defer pin.Release()
	return pin.Open()
}

// sendAhead sends what a build needs to the builder that would get it now, unless
// that is under way, or not worth a transfer of its own. more are inputs that are not
// in the spool yet.
func (s *supplier) sendAhead(r scheduler.Request, more ...parcel) {
	if s.bound != nil || s.forward != nil && !s.forward.over() {
		return
	}
	r.Present = s.presence()
	builder, ok := s.server.opts.Scheduler.Prospect(r)
	if !ok {
		return
	}
	known, kept := s.server.opts.Builders.Known(builder), s.holds.keptOn(builder)
	parcels := slices.DeleteFunc(append(s.spooled(), more...), func(p parcel) bool {
		return known(p.info.Path) || kept(p.info.Path)
	})
	if sizeOf(parcels) > smallTransfer {
		s.forward = s.newForward(builder)
		s.forward.offer(parcels...)
	}
}

// spooled returns the inputs that are in the spool.
func (s *supplier) spooled() []parcel {
	var parcels []parcel
	for _, path := range s.inputs.paths {
		if pin := s.inputs.pins[path]; pin != nil {
			parcels = append(parcels, s.ahead(pin.Info()))
		}
	}
	return parcels
}

// ahead is an input in the spool that a forward sends. It has no pin, which would end
// with its owner's.
func (s *supplier) ahead(info daemon.PathInfo) parcel {
	return parcel{info: info, open: func() (io.ReadCloser, error) { return s.server.openSpooled(info.Path) }}
}

// newForward starts a forward.
func (s *supplier) newForward(builder string) *forward {
	f := &forward{
		log: s.server.log, server: s.server, holds: s.holds, builder: builder, inputs: slices.Clone(s.inputs.paths),
		done: make(chan struct{}), wake: make(chan struct{}, 1),
		needs: map[string]bool{}, offered: map[string]bool{}, sent: map[string]bool{},
	}
	for _, path := range f.inputs {
		f.needs[path] = true
	}
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(s.background)
	s.running.Go(func() {
		defer close(f.done)
		defer f.cancel()
		err := f.run(ctx)
		f.mu.Lock()
		f.ended = true
		f.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			f.log.Info("Inputs were not sent ahead", "builder", f.builder, "error", err)
		}
	})
	return f
}

// settleForward ends the sending ahead, because a builder has the build: it waits for
// what is on its way there, and stops what goes elsewhere.
func (s *supplier) settleForward(ctx context.Context, builder string) error {
	f := s.forward
	if f == nil {
		return nil
	}
	s.forward = nil
	if f.builder != builder {
		f.cancel()
		<-f.done
		return nil
	}
	defer s.doing(builder, "receives inputs")()
	f.finish()
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		f.cancel()
		<-f.done
		return context.Cause(ctx)
	}
}

// offer adds parcels to what is sent; those that it knows already are left alone.
func (f *forward) offer(parcels ...parcel) {
	f.mu.Lock()
	for _, p := range parcels {
		if path := p.info.Path; !f.offered[path] {
			f.offered[path] = true
			f.waiting = append(f.waiting, p)
		}
	}
	f.mu.Unlock()
	f.rouse()
}

// finish makes the forward end when all that can be sent was sent.
func (f *forward) finish() {
	f.mu.Lock()
	f.last = true
	f.mu.Unlock()
	f.rouse()
}

func (f *forward) rouse() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// over reports whether the forward has ended.
func (f *forward) over() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// brings reports whether a path was sent to a builder, or is to be. A nil forward
// brings nothing.
func (f *forward) brings(builder, path string) bool {
	if f == nil || f.builder != builder {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent[path] || !f.ended && f.offered[path]
}

// run sends what is offered until nothing more comes.
func (f *forward) run(ctx context.Context) error {
	if err := f.holds.ask(ctx, f.builder, f.inputs); err != nil {
		return err
	}
	f.kept = f.holds.keptOn(f.builder)
	for {
		batch := f.next(ctx, nil)
		if len(batch) == 0 {
			return nil
		}
		if err := f.transfer(ctx, batch); err != nil {
			return err
		}
	}
}

// transfer sends parcels, and what can be sent soon after them, over one session. What
// has arrived is held before the session that has received it ends. That is not kept
// for what may come later: a builder has few transfers at the same time, and builds
// that wait for a slot would keep them from those that need one to give a slot back.
func (f *forward) transfer(ctx context.Context, batch []parcel) error {
	session, err := f.server.opts.Builders.OpenBulk(ctx, f.builder)
	if err != nil {
		return err
	}
	defer session.Close()
	var arrived []string
	for err == nil && len(batch) > 0 {
		if err = send(ctx, session, batch, nil); err == nil {
			arrived = append(arrived, f.note(batch)...)
			batch = f.next(ctx, time.After(idleForward))
		}
	}
	return errors.Join(err, f.holds.ask(ctx, f.builder, arrived))
}

// note marks parcels as sent and returns their paths.
func (f *forward) note(batch []parcel) []string {
	paths := storePathsOf(batch)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, path := range paths {
		f.sent[path] = true
	}
	return paths
}

// next waits for parcels that can be sent and returns them in an order in which they
// can. The last of them may be one that is still being written to the spool. There are
// none if no more will come, or none has come before late.
func (f *forward) next(ctx context.Context, late <-chan time.Time) []parcel {
	for {
		f.mu.Lock()
		batch, last := f.takeReady(), f.last
		f.mu.Unlock()
		if len(batch) > 0 || last {
			return batch
		}
		select {
		case <-f.wake:
		case <-late:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// takeReady takes those parcels out of waiting whose references the builder has or
// gets before them. The lock is held.
func (f *forward) takeReady() []parcel {
	var batch, rest []parcel
	taken := map[string]bool{}
	for _, p := range inOrder(f.waiting) {
		path := p.info.Path
		switch {
		case f.kept(path):
			// Nothing to do.
		case f.complete(p.info, taken):
			taken[path] = true
			batch = append(batch, p)
		default:
			rest = append(rest, p)
		}
	}
	f.waiting = rest
	return batch
}

// complete reports whether all that a path refers to is on the builder, or among
// those taken. Paths that are no inputs are left to the builder's judgement.
func (f *forward) complete(info daemon.PathInfo, taken map[string]bool) bool {
	for _, ref := range info.References {
		if ref == info.Path || f.sent[ref] || taken[ref] || f.kept(ref) {
			continue
		}
		if f.needs[ref] || f.offered[ref] {
			return false
		}
	}
	return true
}
