// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Server is a running server. It is stopped at the end of the test.
type Server struct {
	listener net.Listener
	hostKey  ssh.Signer
	behavior atomic.Pointer[Behavior]
	accepted atomic.Int64
	work     sync.WaitGroup
	stop     chan struct{}

	mu     sync.Mutex
	conns  map[*gatedConn]bool
	frozen bool
	closed bool
}

// New starts a server on a free port of the loopback interface.
func New(tb testing.TB, behavior Behavior) *Server {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("listen: %v", err)
	}
	return Serve(tb, listener, NewKey(tb), behavior)
}

// Serve starts a server on a listener, which it closes in the end, with a host key.
func Serve(tb testing.TB, listener net.Listener, hostKey ssh.Signer, behavior Behavior) *Server {
	tb.Helper()
	s := &Server{listener: listener, hostKey: hostKey, stop: make(chan struct{}), conns: map[*gatedConn]bool{}}
	s.behavior.Store(&behavior)
	s.work.Go(s.accept)
	tb.Cleanup(s.Close)
	return s
}

// Addr is the server's host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// HostKey is the server's own host key.
func (s *Server) HostKey() ssh.PublicKey { return s.hostKey.PublicKey() }

// Accepted counts connections accepted so far.
func (s *Server) Accepted() int { return int(s.accepted.Load()) }

// Open counts connections that are open.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Set changes the behavior for connections accepted from now on.
func (s *Server) Set(behavior Behavior) { s.behavior.Store(&behavior) }

// Freeze stops reading and writing on all connections, present and future, until
// Thaw: what SIGSTOP to all processes of a machine does.
func (s *Server) Freeze() { s.setFrozen(true) }

// Thaw ends Freeze.
func (s *Server) Thaw() { s.setFrozen(false) }

func (s *Server) setFrozen(frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = frozen
	for conn := range s.conns {
		conn.setFrozen(frozen)
	}
}

// CloseConnections cuts all connections, as a crash of the machine's sshd does.
func (s *Server) CloseConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		_ = conn.Close()
	}
}

// Close stops the server and waits for everything that runs on it.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	_ = s.listener.Close()
	s.CloseConnections()
	s.work.Wait()
}

func (s *Server) accept() {
	for {
		raw, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.accepted.Add(1)
		conn := newGatedConn(raw)
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = raw.Close()
			return
		}
		s.conns[conn] = true
		conn.setFrozen(s.frozen)
		s.mu.Unlock()
		s.work.Go(func() {
			s.serve(conn, *s.behavior.Load())
			_ = conn.Close()
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
		})
	}
}

// gatedConn is a connection that can be frozen.
type gatedConn struct {
	net.Conn

	mu     sync.Mutex
	open   *sync.Cond
	frozen bool
	closed bool
}

func newGatedConn(conn net.Conn) *gatedConn {
	g := &gatedConn{Conn: conn}
	g.open = sync.NewCond(&g.mu)
	return g
}

func (g *gatedConn) setFrozen(frozen bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.frozen = frozen
	g.open.Broadcast()
}

// pass waits while the connection is frozen.
func (g *gatedConn) pass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.frozen && !g.closed {
		g.open.Wait()
	}
}

// Read hands over nothing while frozen, not even what has arrived.
func (g *gatedConn) Read(p []byte) (int, error) {
	g.pass()
	n, err := g.Conn.Read(p)
	g.pass()
	return n, err
}

// Write waits while frozen.
func (g *gatedConn) Write(p []byte) (int, error) {
	g.pass()
	return g.Conn.Write(p)
}

// Close closes also a frozen connection.
func (g *gatedConn) Close() error {
	g.mu.Lock()
	g.closed = true
	g.open.Broadcast()
	g.mu.Unlock()
	return g.Conn.Close()
}
