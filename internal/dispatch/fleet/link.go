// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

const (
	// sessionsPerLink is how many sessions one connection gets at most. OpenSSH
	// admits ten unless configured otherwise (MaxSessions), and counts one for a
	// moment after it has ended; a lower limit is learned from its refusals.
	sessionsPerLink = 9
	// linkAge is how long a connection without sessions is kept.
	linkAge = 10 * time.Minute
	// endingTime is how long a session that has ended may count on the builder.
	endingTime = 2 * time.Second
)

var (
	// errLinkFull means that the builder admits no further session on a
	// connection that has some.
	errLinkFull = errors.New("no further session on this connection")
	// errDaemon marks failures of nix-daemon, as opposed to those of SSH.
	errDaemon = errors.New("nix-daemon")
)

// NotTrustedError means that the daemon does not trust the SSH user.
type NotTrustedError struct {
	// User is the user we log in as.
	User string
}

func (e *NotTrustedError) Error() string {
	return fmt.Sprintf("user %q is not trusted by nix-daemon: add it to trusted-users in the builder's nix.conf", e.User)
}

// link is one SSH connection. Its counters are guarded by the host's lock.
type link struct {
	host *host
	conn Conn
	// sessions is how many are open or being opened, limit how many may be.
	sessions, limit int
	// unused closes the connection after it had no session for a while.
	unused *time.Timer
	// closing is set before we close the connection ourselves.
	closing bool
	// fullUntil is until when no session is opened after a refusal, lastEnd when a
	// session ended last.
	fullUntil, lastEnd time.Time
	// bulk is set for connections of transfers.
	bulk bool
}

// open opens a session on a link that has counted it already. A builder that
// does not manage to do so is down.
func (l *link) open(ctx context.Context) (*Session, error) {
	h := l.host
	opening, cancel := context.WithTimeoutCause(ctx, h.fleet.opts.OpenTimeout, errSilent)
	defer cancel()
	s, err := l.start(opening)
	if err == nil {
		return s, nil
	}
	full := l.uncount(sshconn.KindOf(err) == sshconn.KindSessionRefused)
	switch {
	case full:
		return nil, errLinkFull
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	// It may be dead without the keepalive having noticed yet.
	l.giveUp()
	h.fail(err)
	return nil, &LostError{Builder: h.id, Err: err}
}

// giveUp keeps new sessions from the connection, and closes it with its last.
func (l *link) giveUp() {
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	l.limit = 0
	l.closeWhenUnused()
}

// uncount takes back one session. If it was refused while others exist, that is
// how many the builder admits, unless one of them has just ended, and uncount
// reports true.
func (l *link) uncount(refused bool) bool {
	h := l.host
	h.mu.Lock()
	defer h.mu.Unlock()
	l.sessions--
	now := time.Now()
	if refused && (l.sessions > 0 || now.Sub(l.lastEnd) < endingTime) {
		if now.Sub(l.lastEnd) < endingTime {
			l.fullUntil = now.Add(endingTime)
		} else {
			l.limit = l.sessions
			h.learned, h.learnedAt = l.sessions, now
		}
		return true
	}
	l.lastEnd = now
	l.closeWhenUnused()
	return false
}

// start runs nix-daemon and shakes hands.
func (l *link) start(ctx context.Context) (*Session, error) {
	h := l.host
	stream, err := l.conn.Start(ctx, h.command())
	if err != nil {
		return nil, err
	}
	s := &Session{host: h, link: l, line: &line{Stream: stream, traffic: &h.traffic}, born: time.Now(), closed: make(chan struct{})}
	s.client, err = daemon.NewClient(ctx, s.line, daemon.ClientOptions{})
	if err != nil {
		text := sshconn.Printable(stream.Stderr())
		stream.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if text != "" {
			return nil, fmt.Errorf("%w: %w (it wrote: %s)", errDaemon, err, text)
		}
		return nil, fmt.Errorf("%w: %w", errDaemon, err)
	}
	if s.client.Peer().Trust == daemon.NotTrusted {
		stream.Close()
		return nil, &NotTrustedError{User: h.user()}
	}
	s.end = sync.OnceFunc(s.hangUp)
	return s, nil
}

// prove opens a first session and makes sure that the daemon trusts us. Daemons
// before protocol 1.35 do not say so in the handshake; those are asked to repair
// nothing, which they do for trusted users only.
func (l *link) prove(ctx context.Context) (*Session, error) {
	s, err := l.start(ctx)
	if err != nil {
		return nil, err
	}
	if s.client.Peer().Trust == daemon.Trusted {
		return s, nil
	}
	// The refusal ends the connection, so the test has a session of its own.
	err = s.client.BuildPaths(ctx, nil, daemon.BuildRepair, nil)
	s.line.Close()
	var remote *daemon.RemoteError
	if errors.As(err, &remote) {
		if strings.Contains(remote.Message, "trusted-users") {
			err = &NotTrustedError{User: l.host.user()}
		}
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDaemon, err)
	}
	return l.start(ctx)
}

// command is what runs on the builder. The program comes from a validated field
// or from a machines file that its user trusts like a shell script.
func (h *host) command() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return cmp.Or(h.endpoint.RemoteProgram, "nix-daemon") + " --stdio"
}

func (h *host) user() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.endpoint.User
}

// watch waits for the end of the connection. One that we have not closed means
// that the builder is down until proved otherwise.
func (l *link) watch() {
	select {
	case <-l.conn.Done():
	case <-l.host.fleet.ctx.Done():
		l.close()
		<-l.conn.Done()
	}
	h := l.host
	h.mu.Lock()
	h.links = without(h.links, l)
	h.bulk.remove(l)
	if l.unused != nil {
		l.unused.Stop()
	}
	expected := l.closing
	l.closing = true
	// The loss of a transfer is told by its session; whether the builder is down,
	// by the connection beside it.
	down := !expected && (!l.bulk || len(h.links) == 0)
	h.mu.Unlock()
	if down {
		h.fail(l.conn.Err())
	}
}

// close closes the connection on purpose.
func (l *link) close() {
	l.host.mu.Lock()
	l.closing = true
	l.host.mu.Unlock()
	if err := l.conn.Close(); err != nil {
		l.host.log.Warn("Connection was not closed", "error", err)
	}
}

// closeWhenUnused closes a connection that has had no session for a while, or,
// if it can get no more, now. The host's lock is held.
func (l *link) closeWhenUnused() {
	if l.sessions > 0 || l.closing || l.bulk {
		return
	}
	wait := linkAge
	if l.host.retired || l.limit == 0 {
		wait = 0
	}
	if l.unused != nil {
		l.unused.Stop()
	}
	l.unused = time.AfterFunc(wait, func() {
		l.host.mu.Lock()
		use := l.sessions > 0
		if !use {
			l.limit = 0 // no new session from here on
		}
		l.host.mu.Unlock()
		if !use {
			l.close()
		}
	})
}
