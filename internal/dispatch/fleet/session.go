// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"io"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

const (
	// answerTimeout bounds questions that a daemon answers from its database.
	answerTimeout = 30 * time.Second
	// stallTimeout ends a transfer that makes no progress. It is generous: a
	// daemon says nothing while it flushes what it got to a slow disk.
	stallTimeout = 2 * time.Minute
	// stallRate is how fast, in bytes a second, the slowest of builders checks and
	// optimises a path that it has received, during which it says nothing.
	stallRate = 16 << 20
	// maxStallSize bounds what is believed of a path's size for that.
	maxStallSize = 128 << 30
	// fetchTimeout ends a substitution of which the builder tells nothing.
	fetchTimeout = 10 * time.Minute
)

// Session is a daemon session on a builder. It serves one purpose at a time and
// is not safe for concurrent use, except for Close.
//
// Errors of its methods are a *[LostError] if the builder or the connection
// failed, a *daemon.RemoteError if the daemon answered with an error, the cause
// of the context's end, or the error of a sink, source or destination that the
// caller gave.
type Session struct {
	host   *host
	link   *link
	client *daemon.Client
	stream Stream
	close  func()
	// expiry ends the session when it has been idle for too long.
	expiry *time.Timer
}

// Builder is the ID of the builder.
func (s *Session) Builder() string { return s.host.id }

// Close ends the session; what the daemon does for it is interrupted. Further
// calls do nothing.
func (s *Session) Close() { s.close() }

// discard closes a session that nobody uses.
func (s *Session) discard() { s.close() }

// Keep gives a session back that has only answered questions, for use by
// another. A session that has failed is closed by it.
func (s *Session) Keep() {
	h := s.host
	h.mu.Lock()
	keep := !h.retired && h.outage == nil && len(h.idle) < maxIdle
	if keep {
		h.keepIdle(s)
	}
	h.mu.Unlock()
	if !keep {
		s.discard()
	}
}

// maxIdle bounds the idle sessions per builder.
const maxIdle = 2

// QueryValidPaths returns those of paths that the builder has. With substitute
// it first fetches what its substituters have, which may take any time as long as
// it tells of it.
func (s *Session) QueryValidPaths(ctx context.Context, paths []string, substitute bool, sink daemon.MessageSink) ([]string, error) {
	var valid []string
	var own failure
	if substitute {
		err := s.moving(ctx, fetchTimeout, &own, func(ctx context.Context, dog *watchdog) (err error) {
			valid, err = s.client.QueryValidPaths(ctx, paths, true, dog.sink(own.sink(sink)))
			return err
		})
		return valid, err
	}
	err := s.within(ctx, answerTimeout, &own, func(ctx context.Context) (err error) {
		valid, err = s.client.QueryValidPaths(ctx, paths, false, own.sink(sink))
		return err
	})
	return valid, err
}

// QuerySubstitutablePaths returns those of paths that the builder can fetch
// from its substituters.
func (s *Session) QuerySubstitutablePaths(ctx context.Context, paths []string) ([]string, error) {
	var found []string
	err := s.within(ctx, 0, nil, func(ctx context.Context) (err error) {
		found, err = s.client.QuerySubstitutablePaths(ctx, paths, nil)
		return err
	})
	return found, err
}

// QueryPathInfo returns what the builder knows of a path, false if it does not
// have it.
func (s *Session) QueryPathInfo(ctx context.Context, path string) (*daemon.PathInfo, bool, error) {
	var info *daemon.PathInfo
	var found bool
	err := s.within(ctx, answerTimeout, nil, func(ctx context.Context) (err error) {
		info, found, err = s.client.QueryPathInfo(ctx, path, nil)
		return err
	})
	return info, found, err
}

// BuildDerivation builds. It has no time limit of its own.
func (s *Session) BuildDerivation(ctx context.Context, drvPath string, drv *daemon.BasicDerivation, sink daemon.MessageSink) (*daemon.BuildResult, error) {
	var result *daemon.BuildResult
	var own failure
	err := s.within(ctx, 0, &own, func(ctx context.Context) (err error) {
		result, err = s.client.BuildDerivation(ctx, drvPath, drv, daemon.BuildNormal, own.sink(sink))
		return err
	})
	return result, err
}

// AddMultipleToStore uploads. It fails when the builder takes nothing for a
// while, longer after large paths; the time the source needs is not counted.
func (s *Session) AddMultipleToStore(ctx context.Context, source daemon.PathSource, sink daemon.MessageSink) error {
	var own failure
	return s.moving(ctx, stallTimeout, &own, func(ctx context.Context, dog *watchdog) error {
		next := source.Next
		source.Next = func() (daemon.PathInfo, io.Reader, error) {
			dog.pause()
			defer dog.resume()
			info, r, err := next()
			if err != nil {
				return info, nil, own.set(err)
			}
			dog.allow(stallTimeout + time.Duration(min(info.NARSize, maxStallSize)/stallRate)*time.Second)
			return info, dog.reader(own.reader(r)), nil
		}
		return s.client.AddMultipleToStore(ctx, source, own.sink(sink))
	})
}

// NARFromPath writes the NAR of a path to dst. It fails when the builder sends
// nothing for a while; the time that dst needs is not counted.
func (s *Session) NARFromPath(ctx context.Context, path string, dst io.Writer) error {
	var own failure
	return s.moving(ctx, stallTimeout, &own, func(ctx context.Context, dog *watchdog) error {
		_, err := s.client.NARFromPath(ctx, path, dog.writer(own.writer(dst)), nil)
		return err
	})
}

// within runs one call with a time limit, zero meaning none.
func (s *Session) within(ctx context.Context, limit time.Duration, own *failure, call func(context.Context) error) error {
	calling, cancel := ctx, func() {}
	if limit > 0 {
		calling, cancel = context.WithTimeoutCause(ctx, limit, errSilent)
	}
	defer cancel()
	return s.judge(ctx, calling, own, call(calling))
}

// moving runs one call under a watchdog with that limit, which it must keep awake.
func (s *Session) moving(ctx context.Context, limit time.Duration, own *failure, call func(context.Context, *watchdog) error) error {
	calling, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dog := newWatchdog(limit, func() { cancel(errSilent) })
	defer dog.pause()
	return s.judge(ctx, calling, own, call(calling, dog))
}

// judge tells whose fault an error is. A daemon that does not answer in time is
// a builder that is down, however alive its SSH connection may be.
func (s *Session) judge(ctx, calling context.Context, own *failure, err error) error {
	if err == nil {
		return nil
	}
	var remote *daemon.RemoteError
	switch {
	case own != nil && own.get() != nil:
		return own.get()
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case calling.Err() != nil:
		err = context.Cause(calling)
		s.host.fail(err)
	case errors.As(err, &remote):
		// Bare: it goes to the user as if there were nobody between.
		return remote
	default:
		s.host.dropIdle()
	}
	return &LostError{Builder: s.host.id, Err: err, Stderr: sshconn.Printable(s.stream.Stderr())}
}
