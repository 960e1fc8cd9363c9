// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// origin is how a delivery came to be. It is kept while an output is on the builder
// only, so that the build can be run again should that builder be lost.
type origin struct {
	log      *slog.Logger
	supplier *supplier
	request  *daemon.BuildDerivation
	need     scheduler.Request
	setbacks []setback
}

// origin returns what is needed to run the job again.
func (j *job) origin() *origin {
	return &origin{log: j.log, supplier: j.supplier, request: j.request, need: j.need, setbacks: j.setbacks}
}

// restore runs the build of a delivery again, because its builder was lost before the
// client had all outputs, and puts the new ones in the place of the old. The client
// knows the hashes of all of them and may have some already, so the new ones must be
// the same bit for bit. generation is that of the delivery when the builder failed: if
// another connection has restored it since, there is nothing to do.
func (s *session) restore(ctx context.Context, d *delivery, generation int, why error) error {
	select {
	case d.restoring <- struct{}{}:
		defer func() { <-d.restoring }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if d.state().generation != generation {
		return nil
	}
	if d.origin == nil {
		return why
	}
	j := d.origin.job(s.server, d, why)
	all := s.server.jobs
	all.mu.Lock()
	follower := j.follow()
	all.add(j)
	all.mu.Unlock()
	s.server.wg.Go(j.run)
	defer func() { all.leave(j, follower, context.Cause(ctx)) }()
	if err := s.follow(ctx, follower); err != nil {
		return err
	}
	switch {
	case j.err != nil:
		return j.err
	case j.delivery == nil:
		return fmt.Errorf("builder %s was lost before the client had all outputs, and building again ended with %s: %s",
			d.state().builder, j.result.Status, j.result.ErrorMessage)
	}
	d.replace(j.delivery)
	return nil
}

// job returns a job that builds a delivery again. The lost builder is its first setback.
func (o *origin) job(server *Server, d *delivery, why error) *job {
	last := setback{builder: d.state().builder, phase: PhaseReturning, lost: true, brief: why.Error(), err: why}
	var lost *fleet.LostError
	if errors.As(why, &lost) {
		last.brief = lost.Brief()
	}
	j := newJob(server, o.log, o.supplier, o.request, o.need)
	j.again = map[string]string{}
	for path, out := range d.outputs {
		j.again[path] = out.info.NARHash
	}
	j.setbacks = o.setbacks
	j.note(last)
	o.need, o.setbacks = j.need, j.setbacks
	return j
}

// reproduced returns an error if a job that runs for the second time has made something
// else than the first time.
func (j *job) reproduced(d *delivery) error {
	for path, hash := range j.again {
		out := d.outputs[path]
		if out != nil && out.info.NARHash == hash {
			continue
		}
		last := j.setbacks[len(j.setbacks)-1]
		return fmt.Errorf("builder %s was lost before the client had all outputs of the build, and builder %s has made a different %s: "+
			"the derivation is not deterministic, and outputs of two runs must not be mixed. Start the build again", last.builder, d.builder, path)
	}
	return nil
}

// deliveryState is where the outputs of a delivery are to be had from.
type deliveryState struct {
	builder    string
	generation int
}

func (d *delivery) state() deliveryState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return deliveryState{d.builder, d.generation}
}

// pin returns the pin of an output that is in the spool, or nil.
func (d *delivery) pin(out *output) *spool.Pin {
	d.mu.Lock()
	defer d.mu.Unlock()
	return out.pin
}

// replace takes hold and pins of another run of the same build.
func (d *delivery) replace(by *delivery) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for path, out := range d.outputs {
		if other := by.outputs[path]; out.pin == nil {
			out.pin, other.pin = other.pin, nil
		}
	}
	d.letGo()
	d.builder, d.hold, by.hold = by.builder, by.hold, nil
	d.generation++
}

// resumed passes a stream on that several readers write, each from its beginning: what
// an earlier one has written is skipped.
type resumed struct {
	to io.Writer
	// written is what was passed on, at what the present reader has come to.
	written, at uint64
}

// again begins with the next reader.
func (w *resumed) again() io.Writer {
	w.at = 0
	return w
}

// Write implements io.Writer.
func (w *resumed) Write(p []byte) (int, error) {
	skip := int(min(uint64(len(p)), w.written-w.at))
	w.at += uint64(skip)
	if skip == len(p) {
		return skip, nil
	}
	n, err := w.to.Write(p[skip:])
	w.written += uint64(n)
	w.at += uint64(n)
	return skip + n, err
}
