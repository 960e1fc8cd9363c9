// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// ErrServerClosed is returned by Serve after Shutdown.
var ErrServerClosed = errors.New("dispatch: server closed")

// maxRequest bounds one request of a client in bytes, without archives: a derivation with
// all its environment, or the list of its inputs, of which each session holds one in
// memory. Derivations of a mebibyte are rare.
const maxRequest = 16 << 20

// Pauses after a connection could not be accepted.
const (
	firstAcceptPause = 10 * time.Millisecond
	maxAcceptPause   = time.Second
)

// errDraining answers builds that have not started when the server shuts down.
var errDraining = errors.New("the dispatcher is shutting down: start the build again when it is back")

// errKilled is the cause of sessions cut short by the end of Shutdown's time.
var errKilled = errors.New("the dispatcher was stopped while the build ran")

// Limits are the bounds of a session. Zero fields have defaults.
type Limits struct {
	// Greeting bounds header and handshake; 30 s.
	Greeting time.Duration
	// Locate bounds the questions to builders while a client waits for the
	// answer to QueryValidPaths; 1 s. Who has not answered has nothing: its line may
	// be full of another upload, and what it has the client can upload here at once.
	Locate time.Duration
	// Substitutes bounds asking builders what they could substitute; 15 s.
	Substitutes time.Duration
	// SpooledOutput is the largest output that is fetched into the spool before
	// the client is told of it, in bytes; 256 MiB. Larger ones stream from the
	// builder.
	SpooledOutput uint64
	// Stall bounds waiting for the next bytes of a client that keeps a slot, a transfer or
	// room in the spool from others; 5 min.
	Stall time.Duration
	// Silence is how long a build may say nothing, Duration how long it may take,
	// and Log how many bytes of log it may write; zero means no limit. Only the time
	// on the builder counts, without transfers.
	Silence, Duration time.Duration
	Log               uint64
	// OrphanGrace is how long the slot of a build that was lost by silence counts as
	// taken; the build may still run. Zero means not at all.
	OrphanGrace time.Duration
	// Losses is how many builders a build may lose that has begun on them, 8: a build may
	// be what brings them down, but several may also go at once without its doing. Other
	// losses do not count, but four times as many setbacks in all are enough, too.
	Losses int
}

func (l Limits) withDefaults() Limits {
	l.Greeting = cmp.Or(l.Greeting, 30*time.Second)
	l.Locate = cmp.Or(l.Locate, time.Second)
	l.Substitutes = cmp.Or(l.Substitutes, 15*time.Second)
	l.SpooledOutput = cmp.Or(l.SpooledOutput, 256<<20)
	l.Stall = cmp.Or(l.Stall, 5*time.Minute)
	l.Losses = cmp.Or(l.Losses, 8)
	return l
}

// Options configure a [Server]. All but Limits and Version are required.
type Options struct {
	Scheduler Scheduler
	Builders  Builders
	Classes   Classes
	Spool     Spool
	Recorder  Recorder
	Limits    Limits
	// Version is what clients show as the daemon's version.
	Version string
	Logger  *slog.Logger
}

// Server serves clients.
type Server struct {
	opts   Options
	limits Limits
	log    *slog.Logger
	hooks  *hooks
	jobs   *jobs
	tardy  tardiness

	// running ends when Shutdown's time is up, draining when it begins.
	running  context.Context
	kill     context.CancelCauseFunc
	draining context.Context
	drain    context.CancelCauseFunc

	wg sync.WaitGroup

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	sessions  map[*session]struct{}
}

// NewServer returns a server that Serve starts.
func NewServer(opts Options) *Server {
	s := &Server{
		opts:      opts,
		limits:    opts.Limits.withDefaults(),
		log:       opts.Logger,
		hooks:     newHooks(),
		jobs:      newJobs(),
		listeners: map[net.Listener]struct{}{},
		sessions:  map[*session]struct{}{},
	}
	s.running, s.kill = context.WithCancelCause(context.Background())
	s.draining, s.drain = context.WithCancelCause(s.running)
	return s
}

// Serve accepts connections from l until Shutdown and closes it. Its error is
// never nil.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.draining.Err() != nil {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for pause := firstAcceptPause; ; {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = firstAcceptPause
			s.start(conn)
		case s.draining.Err() != nil:
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Out of file descriptors, for instance: running builds go on.
			s.log.Error("Connection was not accepted", "error", err)
			select {
			case <-time.After(pause):
			case <-s.draining.Done():
			}
			pause = min(2*pause, maxAcceptPause)
		}
	}
}

// start runs a session for conn, unless the server closes.
func (s *Server) start(conn net.Conn) {
	n := newSession(s, conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Err() != nil {
		conn.Close()
		return
	}
	s.sessions[n] = struct{}{}
	s.wg.Go(func() {
		n.run()
		s.mu.Lock()
		delete(s.sessions, n)
		s.mu.Unlock()
	})
}

// Shutdown stops accepting, closes idle sessions, refuses builds that still wait
// and lets those that run finish. When ctx ends the rest is cut short. It returns
// when every session has ended: nil, or the cause of ctx's end if any was cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.drain(errDraining)
	for l := range s.listeners {
		l.Close()
	}
	for n := range s.sessions {
		n.closeIfIdle()
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
		s.kill(errKilled)
		<-done
	}
	s.hooks.close()
	s.kill(ErrServerClosed)
	return err
}

// Connections returns the number of clients' connections.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// handshake is what clients are told.
func (s *Server) handshake() daemon.ServerOptions {
	return daemon.ServerOptions{
		DaemonVersion: s.opts.Version, Trust: daemon.Trusted, Limits: daemon.Limits{Message: maxRequest},
	}
}
