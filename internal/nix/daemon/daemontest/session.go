// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemontest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// buildActivity is the id of the activity that a build's log belongs to. One
// connection runs one build at a time.
const buildActivity = 1

// session is one connection.
type session struct {
	daemon *Daemon
	srv    *daemon.Server
	call   Call
}

func (s *session) run() error {
	for {
		req, err := s.srv.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			_ = s.srv.Fail(err)
			return err
		}
		if err := s.serve(req); err != nil {
			return err
		}
	}
}

// serve answers one request. An error ends the connection.
func (s *session) serve(req daemon.Request) error {
	d := s.daemon
	d.mu.Lock()
	d.ops = append(d.ops, req.Operation())
	d.mu.Unlock()
	s.call.N++
	s.call.Request = req
	if err := s.before(); errors.Is(err, ErrHangUp) {
		return err
	} else if err != nil {
		return s.srv.Fail(err)
	}
	switch r := req.(type) {
	case *daemon.QueryValidPaths:
		return s.srv.ReplyPaths(d.valid(r.Paths, r.Substitute))
	case *daemon.QuerySubstitutablePaths:
		return s.srv.ReplyPaths(intersection(r.Paths, d.opts.Substitutes))
	case *daemon.AddMultipleToStore:
		if err := d.receive(r, s.hold); err != nil {
			return s.srv.Fail(err)
		}
		return s.srv.ReplyDone()
	case *daemon.AddTempRoot:
		s.hold(r.Path)
	case *daemon.BuildPaths:
		return s.buildPaths(r)
	case *daemon.BuildDerivation:
		return s.build(r)
	case *daemon.QueryPathInfo:
		info, _, ok := d.Path(r.Path)
		return s.srv.ReplyPathInfo(&info, ok)
	case *daemon.NARFromPath:
		_, archive, ok := d.Path(r.Path)
		if !ok {
			return s.srv.Fail(fmt.Errorf("path '%s' is not valid", r.Path))
		}
		return s.srv.ReplyNAR(bytes.NewReader(archive))
	}
	return s.srv.ReplyDone()
}

// before runs Options.Before.
func (s *session) before() error {
	if s.daemon.opts.Before == nil {
		return nil
	}
	if s.call.Request.Operation() == daemon.OpAddMultipleToStore {
		// The upload is still to be read, so nobody may look for a hang-up.
		return s.daemon.opts.Before(s.daemon.ctx, s.call)
	}
	ctx, stop := s.srv.WatchHangup(s.daemon.ctx)
	defer stop()
	return s.daemon.opts.Before(ctx, s.call)
}

func (s *session) buildPaths(r *daemon.BuildPaths) error {
	if r.Mode != daemon.BuildNormal && s.daemon.opts.Trust == daemon.NotTrusted {
		return errors.Join(
			s.srv.Fail(errors.New("repairing is not allowed because you are not in 'trusted-users'")), ErrHangUp)
	}
	return s.srv.ReplyDone()
}

// Build is a build that a Daemon runs.
type Build struct {
	*daemon.BuildDerivation
	// Session numbers the connection, from 1.
	Session int
	daemon  *Daemon
	srv     *daemon.Server
}

// Log sends a line of the build's log.
func (b *Build) Log(line string) error { return b.Send(daemon.LogLine(buildActivity, line)) }

// Send sends any message.
func (b *Build) Send(m daemon.Message) error { return b.srv.Send(m) }

// Output puts a regular file at the path of the named output into the store and
// returns the path.
func (b *Build) Output(name string, contents []byte, references ...string) (string, error) {
	for _, o := range b.Derivation.Outputs {
		if o.Name == name && o.Path != "" {
			b.daemon.AddFile(o.Path, contents, references...)
			return o.Path, nil
		}
	}
	return "", fmt.Errorf("the derivation has no output %q with a known path", name)
}

// DefaultOutputs makes every output a file that holds the derivation's path and
// the output's name, and returns a successful result.
func (b *Build) DefaultOutputs() *daemon.BuildResult {
	for _, o := range b.Derivation.Outputs {
		if _, err := b.Output(o.Name, []byte(b.DrvPath+"!"+o.Name)); err != nil {
			return &daemon.BuildResult{Status: daemon.StatusMiscFailure, ErrorMessage: err.Error()}
		}
	}
	return &daemon.BuildResult{Status: daemon.StatusBuilt}
}

func (s *session) build(r *daemon.BuildDerivation) error {
	d := s.daemon
	if d.opts.Trust == daemon.NotTrusted && !r.Derivation.FixedOutput() {
		return s.srv.Fail(errors.New("you are not privileged to build input-addressed derivations"))
	}
	for _, p := range r.Derivation.InputSources {
		if _, _, ok := d.Path(p); !ok {
			return s.srv.Fail(fmt.Errorf("path '%s' is not valid", p))
		}
	}
	d.mu.Lock()
	d.builds = append(d.builds, r.DrvPath)
	d.mu.Unlock()
	s.hold(r.Derivation.InputSources...)
	for _, o := range r.Derivation.Outputs {
		s.hold(o.Path)
	}

	b := &Build{BuildDerivation: r, Session: s.call.Session, daemon: d, srv: s.srv}
	ctx, stop := s.srv.WatchHangup(d.ctx)
	defer stop()
	if err := s.srv.Send(daemon.StartActivity{ID: buildActivity, Level: daemon.LevelInfo, Type: daemon.ActivityBuild,
		Text: "building '" + r.DrvPath + "'"}); err != nil {
		return err
	}
	result := s.callback(ctx, b)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := s.srv.Send(daemon.StopActivity{ID: buildActivity}); err != nil {
		return err
	}
	stop()
	return s.srv.ReplyBuildResult(result)
}

func (s *session) callback(ctx context.Context, b *Build) *daemon.BuildResult {
	if f := s.daemon.opts.Build; f != nil {
		if result := f(ctx, b); result != nil || ctx.Err() != nil {
			return result
		}
	}
	return b.DefaultOutputs()
}

// intersection returns those of a that are in b, in the order of a.
func intersection(a, b []string) []string {
	in := make(map[string]bool, len(b))
	for _, s := range b {
		in[s] = true
	}
	var both []string
	for _, s := range a {
		if in[s] {
			both = append(both, s)
		}
	}
	return both
}
