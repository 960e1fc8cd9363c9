// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"io"
	"sync"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/journal"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// jobs are the builds in flight.
type jobs struct {
	mu  sync.Mutex
	all map[*job]struct{}
	// shared has those that others may join, by their identity.
	shared map[string]*job
}

func newJobs() *jobs { return &jobs{all: map[*job]struct{}{}, shared: map[string]*job{}} }

// buildDerivation answers operation 36: the build is a job, which the session follows.
func (s *session) buildDerivation(r *daemon.BuildDerivation) error {
	ctx, stop := s.daemon.WatchHangup(s.ctx)
	defer stop()
	j, follower, err := s.join(ctx, r)
	if err != nil {
		return err
	}
	defer func() {
		s.server.jobs.leave(j, follower, context.Cause(ctx))
		if n := follower.Missed(); n > 0 {
			s.server.opts.Recorder.Missed(n)
		}
	}()
	if err := s.follow(ctx, follower); err != nil {
		return err
	}
	if j.err != nil {
		return j.err
	}
	if j.delivery != nil {
		s.hook.add(j.delivery.retain())
	}
	return s.daemon.ReplyBuildResult(j.result)
}

// join returns the job of an equal build that is under way, or starts one. The caller
// leaves it.
func (s *session) join(ctx context.Context, r *daemon.BuildDerivation) (*job, *journal.Follower, error) {
	if err := s.supplier.inputs.admit(r.Derivation.InputSources...); err != nil {
		return nil, nil, err
	}
	identity, err := s.supplier.identity(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	need, err := s.supplier.need(r)
	if err != nil {
		return nil, nil, err
	}
	need.Client, need.Label = s.client, r.DrvPath
	// What the client has named so far stays pinned for its next build, and what
	// was begun for this one goes to the job, or ends.
	supplier := s.supplier
	s.supplier = supplier.successor()

	all := s.server.jobs
	all.mu.Lock()
	j := all.shared[identity]
	if identity != "" && j != nil {
		follower := j.follow()
		all.mu.Unlock()
		supplier.release()
		s.log.Info("Client follows an equal build", "drv", r.DrvPath)
		s.server.opts.Recorder.Joined()
		return j, follower, s.sayOrLeave(j, follower, "the same build is under way already: following it")
	}
	j = newJob(s.server, s.log.With("drv", r.DrvPath), supplier, r, need)
	j.identity = identity
	follower := j.follow()
	all.add(j)
	all.mu.Unlock()
	s.server.wg.Go(j.run)
	return j, follower, nil
}

// sayOrLeave shows the user a line; if that fails the session leaves the job.
func (s *session) sayOrLeave(j *job, f *journal.Follower, line string) error {
	err := s.say(line)
	if err != nil {
		s.server.jobs.leave(j, f, err)
	}
	return err
}

// follow passes on what a job tells until it has ended.
func (s *session) follow(ctx context.Context, f *journal.Follower) error {
	for {
		m, err := f.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		// In the middle of an archive nothing can be said.
		if err := s.daemon.Send(m); err != nil && !errors.Is(err, daemon.ErrNoRequest) {
			return err
		}
	}
}

// add makes j known. The lock is held.
func (c *jobs) add(j *job) {
	c.all[j] = struct{}{}
	if j.identity != "" {
		c.shared[j.identity] = j
	}
}

// leave takes a follower from a job. The last one to leave ends it, and releases what
// it has made.
func (c *jobs) leave(j *job, f *journal.Follower, why error) {
	f.Leave()
	c.mu.Lock()
	j.followers--
	last := j.followers == 0
	if last {
		c.hide(j)
	}
	ended := j.ended
	c.mu.Unlock()
	switch {
	case !last:
	case ended && j.delivery != nil:
		j.delivery.release()
	case why == nil:
		j.cancel(daemon.ErrClientGone)
	default:
		j.cancel(why)
	}
}

// end publishes the outcome of a job.
func (c *jobs) end(j *job, result *daemon.BuildResult, d *delivery, err error) {
	c.mu.Lock()
	c.hide(j)
	delete(c.all, j)
	j.result, j.delivery, j.err, j.ended = result, d, err, true
	alone := j.followers == 0
	c.mu.Unlock()
	j.journal.Close()
	if alone && d != nil {
		d.release()
	}
}

// hide makes sure that nobody joins j any more. The lock is held.
func (c *jobs) hide(j *job) {
	if j.identity != "" && c.shared[j.identity] == j {
		delete(c.shared, j.identity)
	}
}

// status describes the unfinished builds.
func (c *jobs) status() []BuildStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]BuildStatus, 0, len(c.all))
	for j := range c.all {
		list = append(list, j.status())
	}
	return list
}
