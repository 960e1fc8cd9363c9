// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// machine is a builder in memory. Its connections fail while refuse is set.
type machine struct {
	*daemontest.Daemon
	id       string
	endpoint inventory.Endpoint

	mu     sync.Mutex
	refuse error
	// reticent makes the machine never tell that a session has ended.
	reticent bool
	conns    []*conn
}

// newMachine returns the builder "b/<name>" with one slot.
func newMachine(t *testing.T, name string, opts daemontest.Options, change ...func(*inventory.Endpoint)) *machine {
	t.Helper()
	if opts.Trust == 0 {
		opts.Trust = daemon.Trusted
	}
	m := &machine{Daemon: daemontest.New(opts), endpoint: inventory.Endpoint{
		Builder: "b", Name: name, Host: name, Port: 22, User: "nix",
		Systems: []string{system}, Slots: 1, SpeedFactor: 1, State: inventory.StateHealthy,
	}}
	for _, f := range change {
		f(&m.endpoint)
	}
	m.id = m.endpoint.ID()
	t.Cleanup(m.Daemon.Close)
	return m
}

func slots(n int) func(*inventory.Endpoint) {
	return func(e *inventory.Endpoint) { e.Slots = n }
}

func features(list ...string) func(*inventory.Endpoint) {
	return func(e *inventory.Endpoint) { e.SupportedFeatures = list }
}

var errDown = errors.New("power failure")

// down ends all connections to the machine and refuses new ones.
func (m *machine) down() {
	m.mu.Lock()
	m.refuse = errDown
	conns := m.conns
	m.conns = nil
	m.mu.Unlock()
	for _, c := range conns {
		c.end(errDown)
	}
}

// lose ends all connections to the machine, which takes new ones.
func (m *machine) lose(why error) {
	m.mu.Lock()
	conns := m.conns
	m.conns = nil
	m.mu.Unlock()
	for _, c := range conns {
		c.end(why)
	}
}

func (m *machine) up() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = nil
}

// conn is a connection to a machine.
type conn struct {
	machine *machine
	once    sync.Once
	done    chan struct{}
	err     error
	mu      sync.Mutex
	streams []net.Conn
}

func (c *conn) Start(context.Context, string) (fleet.Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		return nil, c.err
	default:
	}
	s := c.machine.Dial()
	c.streams = append(c.streams, s)
	if c.machine.reticent {
		return reticentStream{stream{s, c}}, nil
	}
	return stream{s, c}, nil
}

func (c *conn) end(err error) {
	c.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.err = err
		close(c.done)
		for _, s := range c.streams {
			s.Close()
		}
	})
}

func (c *conn) Done() <-chan struct{} { return c.done }
func (c *conn) Err() error            { return c.err }
func (c *conn) Close() error          { c.end(net.ErrClosed); return nil }

// stream is a command's stream, which ends with its connection and for the same
// reason.
type stream struct {
	net.Conn
	of *conn
}

// reticentStream is one of which nobody hears when its other side has ended.
type reticentStream struct{ stream }

func (s reticentStream) Ended() <-chan struct{}   { return make(chan struct{}) }
func (s reticentStream) CloseAfter(time.Duration) { _ = s.Close() }

func (s stream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	return n, s.why(err)
}

func (s stream) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	return n, s.why(err)
}

func (s stream) why(err error) error {
	if err != nil {
		select {
		case <-s.of.done:
			return s.of.err
		default:
		}
	}
	return err
}

func (stream) Stderr() string { return "" }
