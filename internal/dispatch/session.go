// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// session is one connection of a client.
type session struct {
	server *Server
	conn   net.Conn
	log    *slog.Logger
	// ctx ends when the server is killed.
	ctx context.Context

	// client is the process that has started the hook, as far as is known.
	client   string
	hook     *hook
	daemon   *daemon.Server
	supplier *supplier

	mu sync.Mutex
	// idle is set while the session waits for a request and owes its client
	// nothing.
	idle bool
	// stopped is set once the deadlines are those of the end.
	stopped bool
}

func newSession(server *Server, conn net.Conn) *session {
	return &session{
		server: server,
		conn:   conn,
		log:    server.log,
		ctx:    server.running,
		idle:   true,
	}
}

// run serves the connection to its end.
func (s *session) run() {
	stop := context.AfterFunc(s.ctx, s.cut)
	defer stop()
	defer s.conn.Close()
	refusal, err := s.greet()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			s.noteBreach(err)
			s.log.Warn("Client was turned away", "error", err)
		}
		return
	}
	defer s.release()
	switch err := s.serve(refusal); {
	case errors.Is(err, daemon.ErrClientGone):
		s.log.Info("Client left before it was answered")
	case err != nil:
		s.log.Info("Session ended early", "error", err)
	}
}

// greet reads the header and shakes hands. The handshake is answered whatever
// comes: a refused connection makes Nix give up its remote builders for the rest
// of the run. A line that does not exist is therefore a refusal for later.
func (s *session) greet() (refusal, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.server.limits.Greeting)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := s.setDeadline(deadline); err != nil {
		return nil, err
	}
	header, err := connect.Decode(s.conn)
	if err != nil {
		return nil, err
	}
	if header.Inquiry {
		// Who asks may have left: then nobody needs the answer.
		_, _ = io.WriteString(s.conn, s.server.hooks.reason(header.HookKey()))
		return nil, io.EOF
	}
	s.log = s.log.With("line", header.Target.String(), "hook", header.Hook.PID)
	s.log.Debug("Client connected", "namespace", header.Namespace, "hookStart", header.Hook.StartTime, "client", header.Client.PID)
	if header.Client.PID != 0 {
		s.client = fmt.Sprint(header.ClientKey())
	}
	class, refusal := s.server.opts.Classes.Lookup(header.Target)
	s.daemon, err = daemon.Accept(ctx, s.conn, s.server.handshake())
	if err != nil {
		return nil, err
	}
	if err := s.setDeadline(time.Time{}); err != nil {
		s.daemon.Close()
		return nil, err
	}
	s.hook = s.server.hooks.join(header.HookKey())
	s.supplier = newSupplier(s.server, s.log, class, s.say, s.daemon.Send)
	return refusal, nil
}

// release gives everything back.
func (s *session) release() {
	s.server.hooks.leave(s.hook)
	s.supplier.release()
	// Joins the reader that looks for a hang-up.
	s.daemon.Close()
}

// serve answers requests until the client leaves. An error answers the request;
// one that cannot be told ends the session.
func (s *session) serve(refusal error) error {
	for s.mayWait() {
		if s.supplier.bound != nil {
			s.attend() // a slot waits for the client
		}
		req, err := s.daemon.Next()
		s.relax()
		if errors.Is(err, io.EOF) {
			return nil
		}
		s.setBusy()
		s.noteBreach(err)
		var protocol *daemon.ProtocolError
		switch {
		case errors.Is(err, net.ErrClosed) && s.server.draining.Err() != nil:
			return nil // the session was idle
		case errors.As(err, &protocol):
			return errors.Join(err, s.daemon.Fail(err))
		case err != nil:
			return s.stalled(err)
		case refusal != nil:
			return errors.Join(refusal, s.daemon.Fail(refusal))
		}
		if err := s.answer(req); err != nil {
			if err := s.tell(err); err != nil {
				return err
			}
			if _, ok := req.(*daemon.NARFromPath); ok {
				// Nix 2.8 overlooks an error in place of an archive and waits for that.
				s.server.hooks.explain(s.hook.key, err)
				return nil
			}
		}
	}
	return nil
}

// tell answers the running request with err. It returns an error if the client
// cannot be told.
func (s *session) tell(err error) error {
	if s.ctx.Err() != nil {
		// Whatever has failed, it is because of that.
		err = context.Cause(s.ctx)
	}
	if errors.Is(err, daemon.ErrClientGone) {
		return err
	}
	s.noteBreach(err)
	if !errors.Is(err, errStalled) {
		// The rest of an upload is thrown away, for which its client must send it.
		s.attend()
		defer s.relax()
	}
	if failed := s.daemon.Fail(err); failed != nil {
		if errors.Is(failed, daemon.ErrNoRequest) {
			s.server.hooks.explain(s.hook.key, err)
		}
		return errors.Join(err, failed)
	}
	s.log.Info("Request failed", "error", err)
	return nil
}

// noteBreach counts err if it is the client's violation of the protocol.
func (s *session) noteBreach(err error) {
	var lost *fleet.LostError
	if breaksProtocol(err) && !errors.As(err, &lost) {
		s.server.opts.Recorder.BrokeProtocol(SideClient)
	}
}

func (s *session) answer(req daemon.Request) error {
	switch r := req.(type) {
	case *daemon.SetOptions:
		// Never passed on: they would rewrite the builder's own settings.
		return s.daemon.ReplyDone()
	case *daemon.QueryValidPaths:
		return s.queryValidPaths(r)
	case *daemon.AddMultipleToStore:
		return s.addMultipleToStore(r)
	case *daemon.BuildDerivation:
		return s.buildDerivation(r)
	case *daemon.QueryPathInfo:
		return s.queryPathInfo(r)
	case *daemon.NARFromPath:
		return s.narFromPath(r)
	}
	return &daemon.ProtocolError{Operation: req.Operation(), Text: req.Operation().String() + " is not offered by this dispatcher"}
}

// mayWait marks the session idle, unless it holds something that its client may
// still want. It reports false when the server closes and nothing is owed.
func (s *session) mayWait() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = s.hook.settled()
	return !s.idle || s.server.draining.Err() == nil
}

func (s *session) setBusy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = false
}

// closeIfIdle closes the connection of a session that owes nothing.
func (s *session) closeIfIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idle {
		s.conn.Close()
	}
}

// say shows the user a line.
func (s *session) say(line string) error {
	return s.daemon.Send(daemon.Next{Text: line + "\n"})
}
