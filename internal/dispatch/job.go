// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/journal"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// job is one build in flight. It runs in a goroutine of its own until it has an outcome
// or until nobody follows it any more.
type job struct {
	server   *Server
	log      *slog.Logger
	supplier *supplier
	request  *daemon.BuildDerivation
	need     scheduler.Request
	journal  *journal.Journal
	// identity is what equal builds share; empty if nobody may join.
	identity string
	began    time.Time

	ctx    context.Context
	cancel context.CancelCauseFunc

	// Guarded by the lock of jobs: how many follow, and the outcome, which does not
	// change once the journal is closed.
	followers int
	ended     bool
	result    *daemon.BuildResult
	delivery  *delivery
	err       error

	// The rest but now belongs to the job's goroutine.
	limiter *limiter
	// waited is set once the build had to wait for a slot.
	waited bool
	// setbacks has one entry for every builder that did not finish the build.
	setbacks []setback
	// told is how many of them there were when the users were told of the last.
	told int
	// returning ends the reminder that the builder is about to answer; nil without one.
	returning func()
	// again has the NAR hashes of the outputs, by path, if the client knows them from
	// a run before. The supplier then is not the job's own.
	again map[string]string

	now progress
}

// progress is where a job is, for whoever asks.
type progress struct {
	mu      sync.Mutex
	phase   Phase
	since   time.Time
	builder string
	waiting string
	lost    []string
	// activity is the build on the builder, as its daemon calls it; zero without.
	activity uint64
}

// newJob returns a job that run runs. It takes over the supplier.
func newJob(server *Server, log *slog.Logger, s *supplier, r *daemon.BuildDerivation, need scheduler.Request) *job {
	j := &job{
		server: server, log: log, supplier: s, request: r, need: need,
		journal: journal.New(journal.Options{}), began: time.Now(),
	}
	j.ctx, j.cancel = context.WithCancelCause(server.running)
	j.limiter = newLimiter(server.limits)
	j.now.phase, j.now.since = PhaseQueued, j.began
	s.log, s.say, s.waits, s.relay, s.enter = j.log, j.say, j.waits, j.relay, j.enter
	return j
}

// follow adds a follower. The lock of jobs is held.
func (j *job) follow() *journal.Follower {
	j.followers++
	return j.journal.Follow()
}

// run runs the job to its end.
func (j *job) run() {
	defer j.cancel(nil)
	result, d, err := j.build()
	j.server.opts.Recorder.Ended(j.need.Class, j.now.at(), outcome(result, err))
	j.report(result, err)
	switch {
	case j.again != nil:
	case d != nil && !d.spooled():
		d.origin = j.origin()
	default:
		j.supplier.release()
	}
	j.server.jobs.end(j, result, d, err)
}

// outcome puts the end of a build into one of a few words.
func outcome(result *daemon.BuildResult, err error) string {
	switch {
	case errors.Is(err, daemon.ErrClientGone):
		return "ClientGone"
	case err != nil:
		return "Error"
	}
	name, _, _ := strings.Cut(result.Status.String(), " ")
	return name
}

// report logs how the build has ended.
func (j *job) report(result *daemon.BuildResult, err error) {
	log := j.log.With("builder", j.now.at(), "phase", j.now.is(), "seconds", time.Since(j.began).Seconds())
	switch {
	case errors.Is(err, daemon.ErrClientGone):
		log.Info("Build was given up: nobody waits for it")
	case err != nil:
		log.Info("Build ended without a result", "error", err)
	case result.Status.Success():
		log.Info("Built", "status", result.Status.String())
	default:
		log.Info("Build failed", "status", result.Status.String(), "error", result.ErrorMessage)
	}
}

// build places, transfers and builds, again and again while builders are lost. A build
// that fails is a result, not an error.
func (j *job) build() (*daemon.BuildResult, *delivery, error) {
	for {
		j.enter(PhaseQueued)
		p, err := j.place()
		if err != nil {
			result, err := j.unplaced(err)
			return result, nil, err
		}
		if err := j.announce(p); err != nil {
			p.release()
			return nil, nil, err
		}
		result, d, err := j.attempt(p)
		if d != nil {
			if err = j.reproduced(d); err != nil {
				d.release()
				result, d = nil, nil
			}
		}
		again := j.judge(p, result, err)
		j.leave(p, d, again, err)
		if j.ctx.Err() != nil && err != nil {
			return nil, nil, context.Cause(j.ctx)
		}
		if again == nil {
			return j.conclude(p.builder, result, err), d, j.afterSetbacks(notLimit(err))
		}
		j.note(*again)
		if result, err := j.giveUp(p, *again); result != nil || err != nil {
			return result, nil, err
		}
		if err := j.journal.StopActivities(j.ctx); err != nil {
			return nil, nil, err
		}
	}
}

// place returns where the build runs next: the builder that the upload has bound it to,
// or one that the scheduler finds.
func (j *job) place() (*placement, error) {
	s := j.supplier
	p := s.bound
	for p == nil {
		var err error
		if p, err = j.placeElsewhere(); err != nil && !errors.Is(err, errRespite) {
			return nil, err
		}
	}
	s.bound = nil
	if p.bound && !j.server.serves(p.builder, j.need.Class) {
		p.release()
		return nil, fmt.Errorf("the inputs are on builder %s, which cannot build for %s", p.builder, j.need.Class)
	}
	return p, nil
}

// placeElsewhere waits for a builder that has not failed the build. It fails with
// errRespite when one of them may be taken again.
func (j *job) placeElsewhere() (*placement, error) {
	ctx, need := j.ctx, j.need
	var until time.Time
	if need.Exclude, until = j.excluded(); !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, until, errRespite)
		defer cancel()
	}
	began := time.Now()
	defer func() { j.need.Waited += time.Since(began) }()
	return j.supplier.place(ctx, need)
}

// announce tells where the build runs.
func (j *job) announce(p *placement) error {
	j.now.placed(p.builder)
	j.log.Debug("Build has a builder", "builder", p.builder, "seconds", time.Since(j.began).Seconds())
	return j.say(j.placed(p.builder))
}

// placed is the line that tells the users which builder has the build. Nix itself shows
// the dispatcher's address only.
func (j *job) placed(builder string) string {
	if n := len(j.setbacks); n > 0 {
		return j.setbacks[n-1].String() + ": rebuilding on " + builder
	}
	return "building on " + builder
}

// tellSetback tells of the latest setback at once, where the build has to wait before it
// can be placed again.
func (j *job) tellSetback() error {
	n := len(j.setbacks)
	if j.told == n {
		return nil
	}
	j.told = n
	return j.say(j.setbacks[n-1].String() + ": the build waits")
}

// attempt is one try on one builder: transfer, build, collect.
func (j *job) attempt(p *placement) (*daemon.BuildResult, *delivery, error) {
	ctx, cancel := context.WithCancelCause(j.ctx)
	defer cancel(nil)
	j.limiter.watch(p.builder, cancel)
	defer j.limiter.rest()
	defer j.returned()
	s := j.supplier
	j.enter(PhaseUploading)
	if err := s.supply(ctx, p, s.needed(j.request.Derivation)); err != nil {
		return nil, nil, err
	}
	result, d, err := s.perform(ctx, p, j.request)
	if !mayLackInputs(result, err) {
		return result, d, err
	}
	lacked, failed := s.restock(ctx, p, s.needed(j.request.Derivation))
	if !lacked {
		return result, d, err // nothing is known better
	}
	j.log.Info("Inputs were collected before the build began", "builder", p.builder)
	if err := errors.Join(j.journal.StopActivities(ctx), failed); err != nil {
		return nil, nil, err
	}
	return s.perform(ctx, p, j.request)
}

// leave gives back slot and session of an attempt.
func (j *job) leave(p *placement, d *delivery, again *setback, err error) {
	switch {
	case d != nil: // which has all that it needs
		p.session.Reuse()
		p.lease.Release()
	case again != nil && again.orphan && again.builder == p.builder:
		p.session.Close()
		p.lease.Orphan(j.server.limits.OrphanGrace)
	case err != nil && j.now.is() == PhaseBuilding && again == nil:
		// It is cut short, and runs until its daemon has noticed.
		p.session.Close()
		j.server.wg.Go(func() { j.server.await(p) })
	default:
		p.session.Close()
		p.lease.Release()
	}
}

// await gives a slot back when its build has ended on the builder, or may be supposed to
// have: one that does not tell may run it still.
func (s *Server) await(p *placement) {
	select {
	case <-p.session.Closed():
	case <-s.running.Done():
	}
	if p.session.Ended() {
		p.lease.Release()
		return
	}
	p.lease.Orphan(s.limits.OrphanGrace)
}

// mayLackInputs reports whether a build may have failed for want of inputs. How a
// daemon says so differs between versions, so this only rules out what it is not.
func mayLackInputs(result *daemon.BuildResult, err error) bool {
	var remote *daemon.RemoteError
	if err != nil {
		return errors.As(err, &remote)
	}
	switch result.Status {
	case daemon.StatusDependencyFailed, daemon.StatusMiscFailure, daemon.StatusInputRejected, daemon.StatusNoSubstituters:
		return true
	}
	return false
}

// note records a builder that did not finish the build.
func (j *job) note(s setback) {
	text := "Builder was lost during a build"
	if !s.lost {
		text = "Builder has failed a build that another may do"
	}
	// It need not be the one that was to build: inputs may come from others.
	j.log.Warn(text, "builder", s.builder, "phase", s.phase, "seconds", time.Since(j.began).Seconds(), "error", s.err)
	j.server.opts.Recorder.FailedOver(s.builder, string(s.phase))
	var lost *fleet.LostError
	if errors.As(s.err, &lost) && breaksProtocol(lost) {
		j.server.opts.Recorder.BrokeProtocol(SideBuilder)
	}
	j.setbacks = append(j.setbacks, s)
	j.need.Avoid = append(j.need.Avoid, s.builder)
	j.now.failed(s.builder)
}
