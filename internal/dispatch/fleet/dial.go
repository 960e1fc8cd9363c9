// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

const (
	// maxHandshakes bounds the connections to a builder that are being made at the
	// same time. OpenSSH drops connections at random when ten of all its clients
	// have not logged in yet (MaxStartups 10:30:100).
	maxHandshakes = 2
	// dropRetries and lostRetries bound how often a connection is tried again that
	// was turned away before, or lost within, its handshake. The former costs the
	// builder nothing; the latter OpenSSH may count against our address.
	dropRetries = 8
	lostRetries = 2
	// firstDropPause to maxDropPause bound the pauses before that.
	firstDropPause = 100 * time.Millisecond
	maxDropPause   = 2 * time.Second
)

// dialing is an attempt to connect that any number of sessions wait for.
type dialing struct {
	done chan struct{}
	err  error
}

// dial starts an attempt to connect, or joins the one under way. The attempt
// belongs to the host: no one who waits can abort it for the others. The lock is
// held, and the host is not retired.
func (h *host) dial() *dialing {
	if h.dialing != nil {
		return h.dialing
	}
	d := &dialing{done: make(chan struct{})}
	attempt := func() {
		err := h.connect()
		h.mu.Lock()
		d.err = err
		h.dialing = nil
		h.mu.Unlock()
		if err != nil {
			h.fail(err)
		}
		close(d.done)
	}
	if !h.fleet.spawn(attempt) {
		d.err = errGone
		close(d.done)
		return d
	}
	h.dialing = d
	return d
}

// connect makes a connection, proves it by opening a session that is trusted,
// and keeps both.
func (h *host) connect() error {
	conn, err := h.reach()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(h.ctx, h.fleet.opts.OpenTimeout, errSilent)
	defer cancel()
	l := &link{host: h, conn: conn, sessions: 1, limit: sessionsPerLink}
	s, err := l.prove(ctx)
	if err != nil {
		l.close()
		return err
	}
	h.mu.Lock()
	if h.retired || !h.fleet.spawn(l.watch) {
		h.mu.Unlock()
		l.close()
		return errGone
	}
	recovered := h.outage
	h.outage = nil
	h.links = append(h.links, l)
	h.keepIdle(s)
	h.mu.Unlock()
	peer := s.client.Peer()
	h.log.Info("Connected to builder", "nix", peer.DaemonVersion, "protocol", peer.Version.String())
	if recovered != nil {
		h.fleet.publish()
	}
	return nil
}

// reach makes a connection. One that the builder drops before the login, as it
// does when too many arrive at once, is tried again after a pause; that alone says
// nothing about the builder's health.
func (h *host) reach() (Conn, error) {
	h.mu.Lock()
	endpoint, first := h.endpoint, !h.begun
	h.begun = true
	h.mu.Unlock()
	if jitter := h.fleet.opts.Jitter; first && jitter > 0 {
		_ = rest(h.ctx, rand.N(jitter))
	}
	wait := firstDropPause
	for tries := 0; ; tries++ {
		conn, err := h.shake(endpoint)
		if err == nil || tries >= retries(err) {
			return conn, err
		}
		h.log.Debug("Connection was dropped before the login", "error", err)
		if rest(h.ctx, wait/2+rand.N(wait)) != nil {
			return nil, err
		}
		wait = min(2*wait, maxDropPause)
	}
}

// shake makes one attempt to connect, when few others are under way.
func (h *host) shake(endpoint inventory.Endpoint) (Conn, error) {
	select {
	case h.handshakes <- struct{}{}:
		defer func() { <-h.handshakes }()
	case <-h.ctx.Done():
		return nil, errGone
	}
	ctx, cancel := context.WithTimeoutCause(h.ctx, h.fleet.opts.OpenTimeout, errSilent)
	defer cancel()
	return h.fleet.opts.Dial(ctx, endpoint)
}

// rest waits for d, or until ctx ends, which is its error.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retries is how often a connection that failed in this way is tried again at
// once. OpenSSH turns connections away with the same words when too many come and
// when it penalises an address, and forgets both by itself.
func retries(err error) int {
	var e *sshconn.Error
	if !errors.As(err, &e) {
		return 0
	}
	switch {
	case e.Kind == sshconn.KindTurnedAway:
		return dropRetries
	case e.Kind == sshconn.KindLost && (e.Step == sshconn.StepIdentify || e.Step == sshconn.StepKeyExchange):
		return lostRetries
	}
	return 0
}
