// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"time"
)

const (
	// idleAge is how long a session without work stays usable, on both sides: a
	// daemon process on the builder waits with it.
	idleAge = time.Minute
	// reuseAge and reuseBuilds bound how long one daemon process serves builds: it
	// keeps everything that they used from garbage collection.
	reuseAge    = 2 * time.Minute
	reuseBuilds = 32
	// minIdle is how many sessions may be idle at least.
	minIdle = 2
	// peakWindow is how long a number of sessions counts as recently needed; up to
	// twice that.
	peakWindow = time.Minute
)

// pool counts the sessions of a host that serve builds and questions, and keeps
// those without work. It is guarded by the host's lock.
type pool struct {
	// busy is how many are in use.
	busy int
	// idle holds open sessions without work, the freshest last.
	idle []*Session
	// filling is set while sessions are made ready; coming is closed when the one
	// under way is, nil if somebody waits for it already.
	filling bool
	coming  chan struct{}
	// peak and last are how many were in use at the same time in this window
	// and in the one before; window is when this one began.
	peak, last int
	window     time.Time
}

// count adds n to the sessions in use.
func (p *pool) count(n int) {
	p.busy += n
	p.roll()
	p.peak = max(p.peak, p.busy)
}

func (p *pool) roll() {
	switch past := time.Since(p.window); {
	case past >= 2*peakWindow:
		p.last, p.peak, p.window = 0, p.busy, time.Now()
	case past >= peakWindow:
		p.last, p.peak, p.window = p.peak, p.busy, time.Now()
	}
}

// needed is how many sessions were recently in use at the same time.
func (p *pool) needed() int {
	p.roll()
	return max(p.peak, p.last)
}

// remove takes an idle session out and reports whether it was there.
func (p *pool) remove(s *Session) bool {
	for i, other := range p.idle {
		if other == s {
			p.idle = append(p.idle[:i:i], p.idle[i+1:]...)
			return true
		}
	}
	return false
}

// takeIdle returns the freshest idle session, or nil. Those that have ended
// meanwhile are dropped. The lock is held.
func (h *host) takeIdle() *Session {
	for n := len(h.pool.idle); n > 0; n = len(h.pool.idle) {
		s := h.pool.idle[n-1]
		h.pool.idle = h.pool.idle[:n-1]
		s.expiry.Stop()
		if s.line.gone() {
			h.fleet.spawn(s.discard)
			continue
		}
		return s
	}
	return nil
}

// keepIdle puts a session that has done its work where open finds it. The lock is
// held.
func (h *host) keepIdle(s *Session) {
	s.expiry = time.AfterFunc(min(idleAge, reuseAge-time.Since(s.born)), func() {
		h.mu.Lock()
		mine := h.pool.remove(s)
		h.mu.Unlock()
		if mine {
			s.discard()
		}
	})
	h.pool.idle = append(h.pool.idle, s)
}

// giveBack takes a session that was in use. It reports false if the session has
// to be closed.
func (h *host) giveBack(s *Session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	fit := !h.retired && h.outage == nil && s.link.limit > 0 && s.fit()
	if !fit || len(h.pool.idle) >= max(minIdle, h.pool.needed()) {
		return false
	}
	h.pool.count(-s.count)
	s.count = 0
	h.keepIdle(s)
	return true
}

// dropIdle closes the idle sessions: after one session has ended unexpectedly,
// the others are not to be relied on.
func (h *host) dropIdle() {
	h.mu.Lock()
	idle := h.pool.idle
	h.pool.idle = nil
	h.mu.Unlock()
	for _, s := range idle {
		s.expiry.Stop()
		s.discard()
	}
}

// refill makes sessions ready, as many as were recently needed at the same time.
// They come one by one, so that they do not take the builder's processors from
// builds, and on connections that exist.
func (h *host) refill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool.filling || !h.wantsMore() {
		return
	}
	h.pool.filling = h.fleet.spawn(h.fill)
}

// wantsMore reports whether a session should be made ready. The lock is held.
func (h *host) wantsMore() bool {
	want := min(h.pool.needed(), max(h.endpoint.Slots, 1), h.sessionLimit())
	return !h.retired && h.outage == nil && h.pool.busy+len(h.pool.idle) < want
}

func (h *host) fill() {
	for h.fillOne() {
	}
}

// fillOne makes one session ready and reports whether to go on.
func (h *host) fillOne() bool {
	h.mu.Lock()
	var l *link
	if h.wantsMore() {
		l = h.roomyLink()
	}
	if l == nil {
		h.pool.filling = false
		h.mu.Unlock()
		return false
	}
	coming := make(chan struct{})
	h.pool.coming = coming
	h.mu.Unlock()
	s, err := l.open(h.ctx)
	h.mu.Lock()
	defer close(coming)
	defer h.mu.Unlock()
	if h.pool.coming == coming {
		h.pool.coming = nil
	}
	switch {
	case err != nil:
		// What it means for the builder has been seen to. One whose connection is
		// full gets no further one for this.
		h.pool.filling = false
		return false
	case h.retired || h.outage != nil:
		h.fleet.spawn(s.discard)
	default:
		h.keepIdle(s)
	}
	return true
}

// open returns a session for a build or for questions.
func (h *host) open(ctx context.Context) (*Session, error) { return h.take(ctx, 1) }

// take returns a session: an idle one, one on a connection with room, or one on a
// new connection. It counts as that many in use until it is closed or given back.
func (h *host) take(ctx context.Context, count int) (*Session, error) {
	for {
		h.mu.Lock()
		if err := h.unusable(); err != nil {
			h.mu.Unlock()
			return nil, err
		}
		if s := h.takeIdle(); s != nil {
			s.count = count
			h.pool.count(count)
			h.mu.Unlock()
			h.refill()
			return s, nil
		}
		if coming := h.pool.coming; coming != nil {
			h.pool.coming = nil
			h.mu.Unlock()
			select {
			case <-coming:
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		if l := h.roomyLink(); l != nil {
			h.pool.count(count)
			h.mu.Unlock()
			s, err := l.open(ctx)
			if err == nil {
				s.count = count
				return s, nil
			}
			h.mu.Lock()
			h.pool.count(-count)
			h.mu.Unlock()
			if errors.Is(err, errLinkFull) {
				continue
			}
			return nil, err
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

// unusable returns why no session can be had, or nil. The lock is held.
func (h *host) unusable() error {
	switch {
	case h.retired:
		return &LostError{Builder: h.id, Err: errGone}
	case h.outage != nil:
		return &LostError{Builder: h.id, Err: h.outage.err}
	}
	return nil
}
