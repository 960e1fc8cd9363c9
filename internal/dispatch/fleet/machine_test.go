// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errCut = errors.New("cable cut")

// machine is a builder in memory: a daemon, and the connections to it.
type machine struct {
	*daemontest.Daemon

	mu sync.Mutex
	// refuse is the error of the next dials, nil to accept them.
	refuse error
	// maxSessions is how many sessions a connection admits, 0 for any number.
	maxSessions int
	// broken makes new sessions end at once.
	broken bool
	// dialing is how long a connection takes to be made, starting a session.
	dialing, starting time.Duration
	// lasting makes streams tell when the machine has ended them.
	lasting bool
	// mute makes the first connection open no more sessions and say nothing.
	mute  bool
	dials int
	conns []*wire
}

func newMachine(t *testing.T, opts daemontest.Options) *machine {
	t.Helper()
	if opts.Trust == 0 && opts.Version == 0 {
		opts.Trust = daemon.Trusted
	}
	m := &machine{Daemon: daemontest.New(opts)}
	t.Cleanup(m.Daemon.Close)
	return m
}

func (m *machine) dial(context.Context, inventory.Endpoint) (Conn, error) {
	m.mu.Lock()
	dialing := m.dialing
	m.mu.Unlock()
	time.Sleep(dialing)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dials++
	if m.refuse != nil {
		return nil, m.refuse
	}
	w := &wire{machine: m, done: make(chan struct{}), streams: map[*stream]struct{}{}}
	m.conns = append(m.conns, w)
	return w, nil
}

func (m *machine) set(refuse error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = refuse
}

func (m *machine) counts() (dials, open int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.conns {
		select {
		case <-w.done:
		default:
			open++
		}
	}
	return m.dials, open
}

// cut ends all connections as a network failure does.
func (m *machine) cut() {
	m.mu.Lock()
	conns := m.conns
	m.mu.Unlock()
	for _, w := range conns {
		w.end(errCut)
	}
}

// endStreams ends all sessions as the death of the daemon does.
func (m *machine) endStreams() {
	m.mu.Lock()
	conns := m.conns
	m.mu.Unlock()
	for _, w := range conns {
		w.mu.Lock()
		for s := range w.streams {
			s.Conn.Close()
		}
		w.mu.Unlock()
	}
}

// wire is a connection to a machine.
type wire struct {
	machine *machine
	once    sync.Once
	done    chan struct{}
	err     error

	mu      sync.Mutex
	streams map[*stream]struct{}
}

func (w *wire) Start(ctx context.Context, _ string) (Stream, error) {
	if w.mute() {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	time.Sleep(w.machine.starting)
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.done:
		return nil, w.err
	default:
	}
	if limit := w.machine.maxSessions; limit > 0 && len(w.streams) >= limit {
		return nil, &sshconn.Error{Kind: sshconn.KindSessionRefused}
	}
	s := &stream{wire: w}
	if w.machine.broken {
		client, server := net.Pipe()
		server.Close()
		s.Conn = client
	} else if w.machine.lasting {
		client, server := net.Pipe()
		s.Conn, s.ended = client, make(chan struct{})
		go func() {
			defer close(s.ended)
			_ = w.machine.Serve(server)
		}()
	} else {
		s.Conn = w.machine.Dial()
	}
	w.streams[s] = struct{}{}
	if s.ended != nil {
		return lastingStream{s}, nil
	}
	return s, nil
}

func (w *wire) mute() bool {
	w.machine.mu.Lock()
	defer w.machine.mu.Unlock()
	return w.machine.mute && w == w.machine.conns[0]
}

func (w *wire) end(err error) {
	w.once.Do(func() {
		w.err = err
		close(w.done)
		w.mu.Lock()
		defer w.mu.Unlock()
		for s := range w.streams {
			s.Conn.Close()
		}
	})
}

func (w *wire) Done() <-chan struct{} { return w.done }
func (w *wire) Err() error            { return w.err }

func (w *wire) Close() error {
	w.end(errors.New("closed"))
	return nil
}

type stream struct {
	net.Conn
	wire *wire
	// ended is closed when the machine has ended the stream, nil if that cannot be
	// seen.
	ended chan struct{}
}

// lastingStream is a stream that tells of its end, and whose two sides can be closed
// one after the other.
type lastingStream struct{ *stream }

func (s lastingStream) Ended() <-chan struct{} { return s.ended }

func (s lastingStream) CloseAfter(d time.Duration) {
	_ = s.SetDeadline(time.Now()) // blocked calls end
	time.AfterFunc(d, func() { _ = s.Close() })
}

func (s *stream) Stderr() string { return "last words" }

func (s *stream) Close() error {
	s.wire.mu.Lock()
	delete(s.wire.streams, s)
	s.wire.mu.Unlock()
	return s.Conn.Close()
}

// news records what OnChange is told.
type news struct {
	mu   sync.Mutex
	last []scheduler.Builder
}

func (n *news) set(builders []scheduler.Builder) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = builders
}

// down returns why the builder of that ID cannot be used, by the latest news.
func (n *news) down(t *testing.T, id string) string {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.last {
		if b.ID == id {
			return b.Down
		}
	}
	t.Fatalf("no news of %s", id)
	return ""
}

func endpoint(name string, change ...func(*inventory.Endpoint)) inventory.Endpoint {
	e := inventory.Endpoint{
		Builder: "b", Name: name, Host: name, Port: 22, User: "nix",
		Systems: []string{"x86_64-linux"}, Slots: 2, SpeedFactor: 1, State: inventory.StateHealthy,
	}
	for _, f := range change {
		f(&e)
	}
	return e
}

func document(endpoints ...inventory.Endpoint) inventory.Document {
	return inventory.Document{SchemaVersion: inventory.SchemaVersion, Builders: endpoints}
}

// newFleet returns a fleet of the machine under the ID "b/one".
func newFleet(t *testing.T, m *machine) (*Fleet, *news) {
	t.Helper()
	n := &news{}
	f := New(Options{Dial: m.dial, OnChange: n.set, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(f.Close)
	f.Update(document(endpoint("one")))
	return f, n
}

func open(t *testing.T, f *Fleet) *Session {
	t.Helper()
	s, err := f.Open(t.Context(), "b/one")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// lost checks that err says that the builder was lost because of cause.
func lost(t *testing.T, err, cause error) {
	t.Helper()
	var l *LostError
	if !errors.As(err, &l) || l.Builder != "b/one" {
		t.Fatalf("error = %v, want a *LostError of b/one", err)
	}
	if cause != nil && !errors.Is(err, cause) {
		t.Errorf("error = %v, want one because of %v", err, cause)
	}
}
