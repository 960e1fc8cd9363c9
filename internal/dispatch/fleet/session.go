// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

const (
	// answerTimeout bounds questions that a daemon answers from its database.
	answerTimeout = 30 * time.Second
	// pathsPerFlight bounds the paths of one such question.
	pathsPerFlight = 10000
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
	line   *line
	// born is when the session was opened, builds how many it has served, failed
	// whether any call has failed.
	born   time.Time
	builds int
	failed bool
	// count is what the session counts among those in use; the host's lock guards
	// it.
	count int
	// release, unless nil, gives back what the session has taken beside itself.
	release func()
	// end hangs up, once; closed is closed when the builder has ended the session.
	end    func()
	closed chan struct{}
	ended  atomic.Bool
	// expiry ends the session when it has been idle for too long.
	expiry *time.Timer
}

// Close ends the session; what the daemon does for it is interrupted. It does not
// block. A build that is interrupted in its first moments is hung up on only after
// them, because the daemon would miss it; until Closed tells, it may still run.
// Further calls do nothing.
func (s *Session) Close() {
	s.end()
	s.host.refill()
}

// Closed is closed some time after Close or Reuse: when the builder has ended the
// session, or has not told so in time.
func (s *Session) Closed() <-chan struct{} { return s.closed }

// Ended reports, once Closed is closed, whether the builder has ended the session. If
// not, what ran in it may still run.
func (s *Session) Ended() bool { return s.ended.Load() }

// discard closes a session that nobody uses.
func (s *Session) discard() { s.end() }

// hangUp closes the stream and takes the session off the books, of its connection
// when the builder has ended it.
func (s *Session) hangUp() {
	h := s.host
	_ = s.line.Close()
	h.mu.Lock()
	h.pool.count(-s.count)
	s.count = 0
	h.mu.Unlock()
	if s.link.bulk {
		h.warm(s.link)
	}
	if s.release != nil {
		s.release() // whoever waits for that finds the connection
	}
	end := s.line.wind()
	s.ended.Store(end == nil)
	if end == nil || !h.fleet.spawn(func() {
		s.ended.Store(end(h.fleet.ctx))
		s.settle()
	}) {
		s.settle()
	}
}

// settle takes an ended session off the books of its connection.
func (s *Session) settle() {
	if !s.link.bulk {
		s.link.uncount(false)
	}
	close(s.closed)
}

// Reuse gives a session back whose last call has ended, for another build. One that
// has failed, or has served for long enough, is closed by it. The caller may rely
// on nothing that the session has kept from garbage collection.
func (s *Session) Reuse() {
	if s.release != nil || !s.host.giveBack(s) {
		s.Close()
	}
}

// fit reports whether the session may serve once more.
func (s *Session) fit() bool {
	return !s.failed && s.client.Usable() && !s.line.gone() && s.builds < reuseBuilds && time.Since(s.born) < reuseAge
}

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

// holdPaths keeps paths as long as the session lives and returns which are there.
// Where the daemon refuses to keep them, there is an answer and its error.
func (s *Session) holdPaths(ctx context.Context, paths []string) (valid []string, err error) {
	err = s.inFlights(ctx, paths, func(ctx context.Context, some []string) error {
		there, err := s.client.HoldPaths(ctx, some, nil)
		valid = append(valid, there...)
		return err
	})
	return valid, err
}

// inFlights asks a question about paths, so many at once that an honest answer takes a
// small part of answerTimeout: a builder must not seem silent because somebody asks for a
// million paths. A refusal does not end it, as long as the session can be used.
func (s *Session) inFlights(ctx context.Context, paths []string, ask func(context.Context, []string) error) error {
	var refused error
	for some := range slices.Chunk(paths, pathsPerFlight) {
		err := s.within(ctx, answerTimeout, nil, func(ctx context.Context) error { return ask(ctx, some) })
		var remote *daemon.RemoteError
		if err != nil && !(errors.As(err, &remote) && s.client.Usable()) {
			return err
		}
		refused = cmp.Or(refused, err)
	}
	return refused
}

// queryPathInfos returns what the builder knows of paths, nil for those that it
// does not have.
func (s *Session) queryPathInfos(ctx context.Context, paths []string) (infos []*daemon.PathInfo, err error) {
	err = s.inFlights(ctx, paths, func(ctx context.Context, some []string) error {
		found, err := s.client.QueryPathInfos(ctx, some, nil)
		infos = append(infos, found...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return infos, nil
}

// BuildOutputs builds and fetches outputs, as the method of daemon.Client explains.
// The build has no time limit of its own; after it, the call fails when the builder
// sends nothing for a while, not counting the time that outputs needs.
func (s *Session) BuildOutputs(ctx context.Context, drvPath string, drv *daemon.BasicDerivation, sink daemon.MessageSink, outputs daemon.Outputs) (*daemon.BuildResult, error) {
	var own failure
	s.builds++
	ended := s.line.build()
	calling, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dog := newWatchdog(stallTimeout, func() { cancel(errSilent) })
	dog.pause()
	defer dog.pause()
	built, take := outputs.Built, outputs.Take
	outputs.Built = func() {
		ended()
		if built != nil {
			built()
		}
		dog.resume()
	}
	outputs.Take = func(info daemon.PathInfo) (io.Writer, error) {
		dog.pause()
		defer dog.resume()
		w, err := take(info)
		if err != nil {
			return nil, own.set(err)
		}
		return dog.writer(own.writer(w)), nil
	}
	result, err := s.client.BuildOutputs(calling, drvPath, drv, daemon.BuildNormal, own.sink(sink), outputs)
	err = s.judge(ctx, calling, &own, err)
	if err == nil {
		ended()
	}
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
	s.failed = true
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
	return &LostError{Builder: s.host.id, Err: err, Stderr: sshconn.Printable(s.line.Stderr())}
}
