// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// idleAge is how long a session without work stays usable, on both sides: a
// daemon process on the builder waits with it.
const idleAge = time.Minute

var (
	errGone   = errors.New("it is no longer in the list of builders")
	errSilent = errors.New("no answer in time")
)

// host is one endpoint. Its lock is never held while the fleet's is taken.
type host struct {
	fleet *Fleet
	id    string
	log   *slog.Logger
	ctx   context.Context
	// cancel ends redialling. Links live on while they have sessions.
	cancel context.CancelFunc
	// kick wakes a pause before redialling; it has room for one.
	kick chan struct{}

	mu       sync.Mutex
	endpoint inventory.Endpoint
	outage   *outage
	// redialling is set while redial runs.
	redialling bool
	links      []*link
	dialing    *dialing
	// idle holds open sessions without work, the freshest last.
	idle    []*Session
	retired bool
}

// outage is a builder being down as seen from here.
type outage struct {
	words string
	err   error
	since time.Time
}

// dialing is an attempt to connect that any number of sessions wait for.
type dialing struct {
	done chan struct{}
	err  error
}

func newHost(f *Fleet, endpoint inventory.Endpoint) *host {
	h := &host{
		fleet:    f,
		id:       endpoint.ID(),
		log:      f.opts.Logger.With("builder", endpoint.ID()),
		kick:     make(chan struct{}, 1),
		endpoint: endpoint,
	}
	h.ctx, h.cancel = context.WithCancel(f.ctx)
	return h
}

// sameAccess reports whether endpoint is reached in the same way as h.
func (h *host) sameAccess(endpoint inventory.Endpoint) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return reflect.DeepEqual(access(h.endpoint), access(endpoint))
}

// access is the part of an endpoint that connections depend on.
func access(e inventory.Endpoint) inventory.Endpoint {
	return inventory.Endpoint{
		Host: e.Host, Port: e.Port, User: e.User,
		HostKeys: e.HostKeys, CertificateAuthorities: e.CertificateAuthorities,
		Credentials: e.Credentials, IdentityFile: e.IdentityFile,
		RemoteProgram: e.RemoteProgram,
	}
}

func (h *host) update(endpoint inventory.Endpoint) {
	h.mu.Lock()
	better := listedDown(h.endpoint) && !listedDown(endpoint)
	h.endpoint = endpoint
	h.mu.Unlock()
	if better {
		h.wake()
	}
}

// wake ends a pause before redialling.
func (h *host) wake() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// listedDown reports whether the builders file says that e is down.
func listedDown(e inventory.Endpoint) bool { return e.State == inventory.StateUnhealthy }

// builder is the host as the scheduler sees it.
func (h *host) builder() scheduler.Builder {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.endpoint
	b := scheduler.Builder{
		ID: h.id, Systems: e.Systems,
		Supported: e.SupportedFeatures, Mandatory: e.MandatoryFeatures,
		Slots: e.Slots, Speed: e.SpeedFactor,
	}
	if e.Cordon != nil {
		b.Cordon = &scheduler.Cordon{Reason: e.Cordon.Reason}
		if e.Cordon.Until != nil {
			b.Cordon.Until = *e.Cordon.Until
		}
	}
	switch {
	case h.outage != nil:
		b.Down, b.Since = h.outage.words, h.outage.since
	case listedDown(e):
		b.Down, b.Since = words(e.Reason), e.Since
	}
	return b
}

// open returns a session: an idle one, one on a connection with room, or one on
// a new connection.
func (h *host) open(ctx context.Context) (*Session, error) {
	for {
		h.mu.Lock()
		var unusable error
		switch {
		case h.retired:
			unusable = errGone
		case h.outage != nil:
			unusable = h.outage.err
		}
		if unusable != nil {
			h.mu.Unlock()
			return nil, &LostError{Builder: h.id, Err: unusable}
		}
		if s := h.takeIdle(); s != nil {
			h.mu.Unlock()
			return s, nil
		}
		if l := h.roomyLink(); l != nil {
			h.mu.Unlock()
			s, err := l.open(ctx)
			if errors.Is(err, errLinkFull) {
				continue
			}
			return s, err
		}
		d := h.dial()
		h.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil {
				return nil, &LostError{Builder: h.id, Err: d.err}
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// takeIdle returns the freshest idle session, or nil. The lock is held.
func (h *host) takeIdle() *Session {
	n := len(h.idle)
	if n == 0 {
		return nil
	}
	s := h.idle[n-1]
	h.idle = h.idle[:n-1]
	s.expiry.Stop()
	return s
}

// roomyLink counts one more session on a connection that has room and returns
// it, or nil. The lock is held.
func (h *host) roomyLink() *link {
	for _, l := range h.links {
		if l.sessions < l.limit {
			l.sessions++
			return l
		}
	}
	return nil
}

// dial starts an attempt to connect, or joins the one under way. The attempt
// belongs to the host: no one who waits can abort it for the others. The lock is
// held, and the host is not retired.
func (h *host) dial() *dialing {
	if h.dialing != nil {
		return h.dialing
	}
	d := &dialing{done: make(chan struct{})}
	h.dialing = d
	h.fleet.wg.Go(func() {
		err := h.connect()
		h.mu.Lock()
		d.err = err
		h.dialing = nil
		h.mu.Unlock()
		if err != nil {
			h.fail(err)
		}
		close(d.done)
	})
	return d
}

// connect makes a connection, proves it by opening a session that is trusted,
// and keeps both.
func (h *host) connect() error {
	h.mu.Lock()
	endpoint := h.endpoint
	h.mu.Unlock()
	timeout := h.fleet.opts.OpenTimeout
	ctx, cancel := context.WithTimeoutCause(h.ctx, timeout, errSilent)
	defer cancel()
	conn, err := h.fleet.opts.Dial(ctx, endpoint)
	if err != nil {
		return err
	}
	l := &link{host: h, conn: conn, sessions: 1, limit: sessionsPerLink}
	s, err := l.prove(ctx)
	if err != nil {
		l.close()
		return err
	}
	h.mu.Lock()
	if h.retired {
		h.mu.Unlock()
		l.close()
		return errGone
	}
	recovered := h.outage
	h.outage = nil
	h.links = append(h.links, l)
	h.keepIdle(s)
	h.fleet.wg.Go(l.watch)
	h.mu.Unlock()
	peer := s.client.Peer()
	h.log.Info("Connected to builder", "nix", peer.DaemonVersion, "protocol", peer.Version.String())
	if recovered != nil {
		h.fleet.publish()
	}
	return nil
}

// keepIdle puts a session that has done its work where open finds it. The lock
// is held.
func (h *host) keepIdle(s *Session) {
	s.expiry = time.AfterFunc(idleAge, func() {
		h.mu.Lock()
		for i, other := range h.idle {
			if other == s {
				h.idle = append(h.idle[:i:i], h.idle[i+1:]...)
				h.mu.Unlock()
				s.discard()
				return
			}
		}
		h.mu.Unlock()
	})
	h.idle = append(h.idle, s)
}

// dropIdle closes the idle sessions: after one session has ended unexpectedly,
// the others are not to be relied on.
func (h *host) dropIdle() {
	h.mu.Lock()
	idle := h.idle
	h.idle = nil
	h.mu.Unlock()
	for _, s := range idle {
		s.expiry.Stop()
		s.discard()
	}
}

// fail marks the builder down because of err and begins to redial.
func (h *host) fail(err error) {
	h.dropIdle()
	h.mu.Lock()
	if h.retired || h.ctx.Err() != nil {
		h.mu.Unlock()
		return
	}
	if h.outage == nil {
		h.outage = &outage{since: time.Now()}
		h.log.Warn("Builder is down", "error", err)
	}
	if !h.redialling {
		h.redialling = true
		h.fleet.wg.Go(h.redial)
	}
	h.outage.err = err
	h.outage.words = describe(err)
	h.mu.Unlock()
	h.fleet.publish()
}

// retire ends the host: idle connections are closed now, others with their last
// session.
func (h *host) retire() {
	h.cancel()
	h.dropIdle()
	h.mu.Lock()
	h.retired = true
	var unused []*link
	for _, l := range h.links {
		if l.sessions == 0 {
			unused = append(unused, l)
		}
	}
	h.mu.Unlock()
	h.dropIdle() // one may have come between
	for _, l := range unused {
		l.close()
	}
}
