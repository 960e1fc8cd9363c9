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
	// traffic is that of all sessions, ended ones too.
	traffic traffic

	mu       sync.Mutex
	endpoint inventory.Endpoint
	outage   *outage
	// redialling is set while redial runs.
	redialling bool
	links      []*link
	dialing    *dialing
	pool       pool
	retired    bool
	// learned is how many sessions the builder has admitted on a connection, as of
	// learnedAt; zero if it has refused none.
	learned   int
	learnedAt time.Time

	// handshakes has room for as many connections as may be being made.
	handshakes chan struct{}
	// begun is set with the first connection.
	begun bool
	bulk  bulk
	keep  keeping
	// unheldOnce is for the warning that the builder holds nothing.
	unheldOnce sync.Once
}

// outage is a builder being down as seen from here.
type outage struct {
	words string
	err   error
	since time.Time
}

func newHost(f *Fleet, endpoint inventory.Endpoint) *host {
	h := &host{
		fleet:    f,
		id:       endpoint.ID(),
		log:      f.opts.Logger.With("builder", endpoint.ID()),
		kick:     make(chan struct{}, 1),
		endpoint: endpoint,

		handshakes: make(chan struct{}, maxHandshakes),
	}
	h.bulk.slots = make(chan struct{}, f.opts.Transfers)
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
		Host: e.Host, Port: e.Port, User: e.User, Jump: e.Jump,
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

// roomyLink counts one more session on a connection that has room and returns
// it, or nil. The lock is held.
func (h *host) roomyLink() *link {
	now := time.Now()
	for _, l := range h.links {
		if l.sessions < min(l.limit, h.sessionLimit()) && !now.Before(l.fullUntil) {
			l.sessions++
			return l
		}
	}
	return nil
}

// sessionLimit is how many sessions one connection gets. The lock is held.
func (h *host) sessionLimit() int {
	if h.learned > 0 && time.Since(h.learnedAt) < linkAge {
		return h.learned
	}
	return sessionsPerLink
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
		h.redialling = h.fleet.spawn(h.redial)
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
	unused := h.bulk.drain()
	for _, l := range h.links {
		if l.sessions == 0 {
			unused = append(unused, l)
		}
	}
	h.mu.Unlock()
	h.dropIdle() // one may have come between
	h.doubt()
	for _, l := range unused {
		l.close()
	}
}
