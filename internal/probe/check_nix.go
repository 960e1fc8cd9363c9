// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// nix starts nix-daemon, speaks with it and finds out about trust. It reports
// whether the builder's systems are worth asking for.
func (c *checker) nix(ctx context.Context, r *report, known *knowledge, conn *sshconn.Conn) bool {
	t := r.target
	peer, failure := c.hello(ctx, t, conn)
	if failure != nil {
		if c.full(ctx, r, known, conn, failure) {
			return false
		}
		if failure.reason == ReasonNixNotFound {
			failure.place = findProgram(ctx, t, conn)
		}
		r.fail(StepNixAvailable, failure.reason, messageNix(t, *failure))
		return false
	}
	r.facts.NixVersion = sshconn.Printable(peer.DaemonVersion)
	r.facts.ProtocolVersion = peer.Version.String()
	r.pass(StepNixAvailable, ReasonNixAnswers, messageNixAnswers(t, &r.facts))

	trust := peer.Trust
	if trust == daemon.TrustUnknown {
		trust = c.askTrust(ctx, t, conn)
	}
	switch trust {
	case daemon.Trusted:
		r.facts.Trust = Trusted
		r.pass(StepTrusted, ReasonUserTrusted, messageTrust(t, ReasonUserTrusted))
	case daemon.NotTrusted:
		r.facts.Trust = NotTrusted
		r.fail(StepTrusted, ReasonUserNotTrusted, messageTrust(t, ReasonUserNotTrusted))
	default:
		r.facts.Trust = TrustUnknown
		r.unknown(StepTrusted, ReasonTrustUnknown, messageTrust(t, ReasonTrustUnknown))
	}
	return trust != daemon.NotTrusted
}

// hello performs the handshake of the worker protocol on a session of its own.
func (c *checker) hello(ctx context.Context, t *Target, conn *sshconn.Conn) (daemon.Peer, *nixFailure) {
	stepCtx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	session, err := conn.Start(stepCtx, t.daemonCommand())
	if err != nil {
		return daemon.Peer{}, notStarted(err)
	}
	stdio := &daemonStdio{Session: session, ctx: stepCtx, program: t.program("nix-daemon")}
	client, err := daemon.NewClient(stepCtx, stdio, daemonOptions())
	if err != nil {
		failure := stdio.explain(err)
		c.askClient(ctx, t, conn, failure)
		return daemon.Peer{}, failure
	}
	defer func() { _ = client.Close() }()
	return client.Peer(), nil
}

// askClient asks an ordinary Nix client on the builder what it thinks of the daemon,
// where nix-daemon --stdio ended without saying why: since 2.20 it says nothing, and
// where the socket is missing it complains about the store instead, which it then
// takes for its own. The path asked for exists nowhere.
func (c *checker) askClient(ctx context.Context, t *Target, conn *sshconn.Conn, f *nixFailure) {
	switch f.reason {
	case ReasonDaemonExited, ReasonDaemonHungUp, ReasonDaemonDenied:
	case ReasonLoginDisabled:
		if !f.well {
			return
		}
	default:
		return
	}
	if brokenSettings(f.text) != "" {
		return // a client says the same
	}
	answer := run(ctx, t, conn, shellWord(t.program("nix-store"))+
		" --store daemon --query --hash /nix/store/00000000000000000000000000000000-probe")
	if reason := reasonInWords(answer.stderr); reason != "" {
		f.reason, f.text = reason, lastWords(answer.stderr)
	} else if f.reason == ReasonDaemonExited && f.text == "" && answer.mute {
		// Nothing of Nix fails in silence, whatever it is asked: this is the shell.
		f.reason = ReasonLoginDisabled
	} else if f.reason == ReasonLoginDisabled {
		f.reason = t.silentEnd(&answer)
	}
}

// silentEnd tells what ends well and without a word, where nix-daemon should have
// answered. Nothing of Nix prints nothing where it succeeds: client is how an ordinary client fared next to it.
func (t *Target) silentEnd(client *said) Reason {
	switch {
	case client.success && len(client.stdout) == 0:
		return ReasonLoginDisabled
	case t.RemoteProgram != "", strings.Contains(client.stderr, "is not valid"):
		// The shell runs other programs, and Nix itself works if it is there.
		return ReasonNotNixProtocol
	default:
		return ReasonDaemonHungUp
	}
}

// askTrust finds out whether a daemon trusts the user, where its handshake does not
// say: daemons refuse a repair to users they do not trust, before anything else,
// and a repair of nothing does nothing. Since a refusal ends the connection, it has
// a session of its own.
func (c *checker) askTrust(ctx context.Context, t *Target, conn *sshconn.Conn) daemon.Trust {
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	session, err := conn.Start(ctx, t.daemonCommand())
	if err != nil {
		return daemon.TrustUnknown
	}
	client, err := daemon.NewClient(ctx, &daemonStdio{Session: session, ctx: ctx}, daemonOptions())
	if err != nil {
		return daemon.TrustUnknown
	}
	defer func() { _ = client.Close() }()
	err = client.BuildPaths(ctx, nil, daemon.BuildRepair, nil)
	var refusal *daemon.RemoteError
	switch {
	case err == nil:
		return daemon.Trusted
	case errors.As(err, &refusal) && strings.Contains(refusal.Message, "trusted-users"):
		return daemon.NotTrusted
	default:
		return daemon.TrustUnknown
	}
}

// daemonOptions bound what a daemon may say at once, as maxOutput does for programs: what
// a build may need would be far too much for all machines together.
func daemonOptions() daemon.ClientOptions {
	return daemon.ClientOptions{Limits: daemon.Limits{Message: maxDaemonMessage}}
}

// daemonCommand is what is run on the builder, as Nix itself runs it.
func (t *Target) daemonCommand() string { return shellWord(t.program("nix-daemon")) + " --stdio" }

// shellWord quotes a path for the user's shell where it needs to be.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._/+-", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// exitPatience is how long an ended program's exit status is waited for.
const exitPatience = 2 * time.Second

// daemonStdio is a session with nix-daemon, as the codec closes it: gently, so that
// the exit status and the last words on standard error are there afterwards.
type daemonStdio struct {
	*sshconn.Session
	ctx    context.Context
	closed sync.Once
	// heard tells that the program has said anything.
	heard atomic.Bool
	// program is how it was called.
	program string

	// Set by Close.
	status sshconn.ExitStatus
	exited bool
	lost   error
}

// Read notes whether anything comes.
func (s *daemonStdio) Read(p []byte) (int, error) {
	n, err := s.Session.Read(p)
	if n > 0 {
		s.heard.Store(true)
	}
	return n, err
}

// Close ends the program's input, waits a moment for its end and closes the
// session. Where the time for the whole is over, it does not wait.
func (s *daemonStdio) Close() error {
	s.closed.Do(s.close)
	return nil
}

func (s *daemonStdio) close() {
	_ = s.CloseWrite()
	ctx, cancel := context.WithTimeout(s.ctx, exitPatience)
	defer cancel()
	status, err := s.Wait(ctx)
	if err == nil {
		s.status, s.exited = status, !status.Missing
	} else if kind := sshconn.KindOf(err); kind != "" {
		s.lost = err
	}
	_ = s.Session.Close()
}

// notStarted explains why the command could not be started at all.
func notStarted(err error) *nixFailure {
	var e *sshconn.Error
	if !errors.As(err, &e) {
		return &nixFailure{reason: ReasonSessionTimeout}
	}
	switch e.Kind {
	case sshconn.KindSessionRefused:
		return &nixFailure{reason: ReasonSessionRefused, text: e.Detail}
	case sshconn.KindExecRefused:
		return &nixFailure{reason: ReasonCommandRefused}
	case sshconn.KindTimeout, sshconn.KindCanceled:
		return &nixFailure{reason: ReasonSessionTimeout}
	default:
		return &nixFailure{reason: ReasonConnectionLost}
	}
}

// explain tells why the handshake failed: what the protocol says first, then the
// exit status, then the words on standard error.
func (s *daemonStdio) explain(err error) *nixFailure {
	f := &nixFailure{status: "no exit status", silent: !s.heard.Load()}
	if s.exited {
		f.status, f.well = s.status.String(), s.status.Success()
	}
	stderr := s.Stderr()
	var version *daemon.VersionError
	var denied *daemon.AccessDeniedError
	var preamble *daemon.PreambleError
	var refusal *daemon.RemoteError
	switch {
	case errors.As(err, &version):
		f.reason, f.text = ReasonVersionTooOld, version.Version.String()
		return f
	case errors.As(err, &denied):
		f.reason, f.text = ReasonDaemonDenied, denied.Error()
		return f
	case errors.As(err, &refusal):
		f.reason, f.text = ReasonDaemonRefused, refusal.Message
		return f
	case errors.As(err, &preamble):
		f.text = preamble.Text
	default:
		f.text = lastWords(stderr)
	}
	f.reason = endReason(s.status, s.exited, s.program, stderr+"\n"+f.text)
	if f.reason == "" {
		f.reason = s.reason(err, preamble)
	}
	if f.reason == ReasonNotNixProtocol && !refusesOption(strings.ToLower(f.text)) {
		f.text, f.silent = "", false
	}
	return f
}

// reason judges by how the handshake ended, where the program's end says nothing.
func (s *daemonStdio) reason(err error, preamble *daemon.PreambleError) Reason {
	switch {
	case preamble != nil && hasWords(preamble.Text):
		return ReasonLoginShellPrints
	case preamble != nil:
		return ReasonNotNixProtocol
	case s.lost != nil:
		return ReasonConnectionLost
	case s.ctx.Err() != nil:
		return ReasonDaemonNotAnswering
	case s.exited && !s.status.Success():
		return ReasonDaemonExited
	case s.exited && !s.heard.Load():
		// nix-daemon --stdio ends well only when told to, which nobody has done yet.
		return ReasonLoginDisabled
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return ReasonDaemonHungUp
	default:
		return ReasonNotNixProtocol
	}
}
