// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// platformBuiltin is the system of derivations that run inside Nix itself; any
// builder does.
const platformBuiltin = "builtin"

// buildDerivation answers operation 36.
func (s *session) buildDerivation(r *daemon.BuildDerivation) error {
	ctx, stop := s.daemon.WatchHangup(s.ctx)
	defer stop()
	b, err := s.newBuild(r)
	if err != nil {
		return err
	}
	result, err := b.run(ctx)
	s.server.opts.Recorder.Ended(b.need.Class, b.builder, outcome(result, err))
	if err != nil {
		return err
	}
	return s.daemon.ReplyBuildResult(result)
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

// build is one derivation on its way.
type build struct {
	session *session
	request *daemon.BuildDerivation
	need    scheduler.Request
	log     *log
	// builder is the one that has the build or had it last.
	builder string
	// phase is what is being done there, in one word.
	phase string
	// lost has one entry for every builder that was lost with the build on it.
	lost []*fleet.LostError
}

func (s *session) newBuild(r *daemon.BuildDerivation) (*build, error) {
	features, err := r.Derivation.RequiredSystemFeatures()
	if err != nil {
		return nil, err
	}
	system := r.Derivation.Platform
	if system == platformBuiltin {
		system = s.supplier.class.System
	}
	return &build{
		session: s,
		request: r,
		need:    scheduler.Request{Class: scheduler.Need(system, features), Key: r.DrvPath},
		log:     &log{send: s.daemon.Send},
	}, nil
}

// run places, transfers and builds, again and again while builders are lost. A
// build that fails is a result, not an error.
func (b *build) run(ctx context.Context) (*daemon.BuildResult, error) {
	s := b.session
	for {
		p, err := b.place(ctx)
		if err != nil {
			return nil, err
		}
		b.builder = p.builder
		if err := s.say(b.placed()); err != nil {
			p.release()
			return nil, err
		}
		began := time.Now()
		result, err := b.attempt(ctx, p)
		p.lease.Release()
		if err == nil {
			b.report(result, time.Since(began))
			return result, nil
		}
		p.session.Close()
		var lost *fleet.LostError
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !errors.As(err, &lost):
			return nil, err
		}
		// It need not be the one that was to build: inputs may come from others.
		s.log.Warn("Builder was lost during a build", "drv", b.request.DrvPath, "builder", lost.Builder, "error", err)
		s.server.opts.Recorder.FailedOver(lost.Builder, b.phase)
		if breaksProtocol(lost) {
			s.server.opts.Recorder.BrokeProtocol(SideBuilder)
		}
		b.lost = append(b.lost, lost)
		b.need.Avoid = append(b.need.Avoid, lost.Builder)
		if err := b.giveUp(p); err != nil {
			return nil, err
		}
		if err := b.log.reset(); err != nil {
			return nil, err
		}
	}
}

// giveUp returns why the build is not tried again, or nil.
func (b *build) giveUp(p *placement) error {
	if p.bound {
		return fmt.Errorf("%w; the build cannot move because the dispatcher's spool had no room for its inputs", b.lost[0])
	}
	if len(b.lost) < b.session.server.limits.Attempts {
		return nil
	}
	texts := make([]string, len(b.lost))
	for i, lost := range b.lost {
		texts[i] = lost.Error()
	}
	return fmt.Errorf("gave up after losing %d builders: %s", len(b.lost), strings.Join(texts, "; "))
}

// place returns where the build runs next: the builder that the upload has bound
// it to, or one that the scheduler finds.
func (b *build) place(ctx context.Context) (*placement, error) {
	s := b.session.supplier
	if p := s.bound; p != nil {
		s.bound = nil
		if !s.server.serves(p.builder, b.need.Class) {
			p.release()
			return nil, fmt.Errorf("the inputs are on builder %s, which cannot build for %s", p.builder, b.need.Class)
		}
		return p, nil
	}
	return s.place(ctx, b.need)
}

// placed is the line that tells the user which builder has the build. Nix itself
// shows the dispatcher's address only.
func (b *build) placed() string {
	if n := len(b.lost); n > 0 {
		last := b.lost[n-1]
		return fmt.Sprintf("builder %s lost (%s): rebuilding on %s", last.Builder, last.Brief(), b.builder)
	}
	return "building on " + b.builder
}

// report logs how a build has ended, and adds to the reason of a failure on which
// builder that was.
func (b *build) report(result *daemon.BuildResult, took time.Duration) {
	event := "Built"
	if !result.Status.Success() {
		event = "Build failed"
		result.ErrorMessage = located(result.ErrorMessage, b.builder)
	}
	b.session.log.Info(event, "drv", b.request.DrvPath, "builder", b.builder, "status", result.Status.String(), "seconds", took.Seconds())
}

// located adds the builder to a message that does not name it. Below one of several
// lines, which ends with lines of the log or a command, it has a line of its own.
func located(message, builder string) string {
	if strings.Contains(message, builder) {
		return message
	}
	message = strings.TrimRight(message, "\n")
	separator := " "
	if strings.Contains(message, "\n") {
		separator = "\n"
	}
	return strings.TrimLeft(message+separator+"(on builder "+builder+")", " ")
}

// attempt is one try on one builder: transfer, build, collect.
func (b *build) attempt(ctx context.Context, p *placement) (*daemon.BuildResult, error) {
	s := b.session.supplier
	b.phase = "Uploading"
	if err := s.supply(ctx, p, b.inputs()); err != nil {
		return nil, err
	}
	b.phase = "Building"
	result, err := b.execute(ctx, p)
	if mayLackInputs(result, err) && b.collected(ctx, p) {
		s.log.Info("Inputs were collected before the build began", "drv", b.request.DrvPath, "builder", p.builder)
		if err := errors.Join(b.log.reset(), s.supply(ctx, p, b.inputs())); err != nil {
			return nil, err
		}
		result, err = b.execute(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	if !result.Status.Success() {
		p.session.Close()
		return result, nil
	}
	b.phase = "Answering"
	defer s.doing(p.builder, "returns outputs")()
	d, err := s.collect(ctx, p, b.request.Derivation, result)
	if err != nil {
		return nil, err
	}
	if d.spooled() {
		// Nothing on the builder is needed any more, least of all a daemon that
		// waits until the client leaves.
		p.session.Close()
	}
	b.session.hook.add(d)
	return result, nil
}

// execute runs the derivation. A build may be silent for as long as it likes; but a
// builder that has not even begun it may hang, and the user should know.
func (b *build) execute(ctx context.Context, p *placement) (*daemon.BuildResult, error) {
	begun := b.session.supplier.doing(p.builder, "has not begun the build")
	defer begun()
	return p.session.BuildDerivation(ctx, b.request.DrvPath, b.request.Derivation, func(m daemon.Message) error {
		begun()
		return b.log.relay(m)
	})
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

// collected reports whether the builder no longer has inputs that it had: what it
// was not sent in this session its garbage collector may take before the build.
func (b *build) collected(ctx context.Context, p *placement) bool {
	paths := b.inputs()
	valid, err := p.session.QueryValidPaths(ctx, paths, false, nil)
	if err != nil {
		return false // then the first error counts
	}
	p.has = make(map[string]bool, len(paths))
	for _, path := range valid {
		p.has[path] = true
	}
	return len(p.has) < len(distinct(paths))
}

// inputs are the paths that the builder must have: what the client has named and
// has been told is there or has sent, which is the closure, and the derivation's
// own list.
func (b *build) inputs() []string {
	in := b.session.supplier.inputs
	paths := in.available()
	for _, path := range b.request.Derivation.InputSources {
		if !in.present[path] {
			paths = append(paths, path)
		}
	}
	return paths
}
