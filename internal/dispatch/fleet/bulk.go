// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"time"
)

const (
	// warmAge is how long a connection is kept after a transfer.
	warmAge = time.Minute
	// bulkRest is how long no further connections are tried for transfers after one
	// has failed though the builder is up.
	bulkRest = 30 * time.Second
)

// bulk is what a host has for transfers. All but slots is guarded by the host's
// lock.
type bulk struct {
	// slots has room for as many transfers as may run.
	slots chan struct{}
	// links are all connections, warm those without a transfer.
	links []*link
	warm  []*link
	// rest is until when no new connection is tried.
	rest time.Time
}

// take returns the connection that was used last, or nil.
func (b *bulk) take() *link {
	n := len(b.warm)
	if n == 0 {
		return nil
	}
	l := b.warm[n-1]
	b.warm = b.warm[:n-1]
	l.unused.Stop()
	return l
}

// remove forgets a connection.
func (b *bulk) remove(l *link) {
	b.links = without(b.links, l)
	b.warm = without(b.warm, l)
}

// drain returns the connections without a transfer, for the caller to close.
func (b *bulk) drain() []*link {
	warm := b.warm
	b.warm = nil
	for _, l := range warm {
		l.unused.Stop()
	}
	return warm
}

// openBulk returns a session on a connection that nobody else uses.
func (h *host) openBulk(ctx context.Context) (*Session, error) {
	select {
	case h.bulk.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-h.ctx.Done():
		return nil, &LostError{Builder: h.id, Err: errGone}
	}
	s, err := h.startBulk(ctx)
	if err != nil {
		<-h.bulk.slots
		return nil, err
	}
	s.release = func() { <-h.bulk.slots }
	return s, nil
}

// startBulk starts a session on a connection kept warm, or on a new one. Where the
// builder admits no more connections, or none now, the transfer runs beside builds:
// that is slower, but it gets there.
func (h *host) startBulk(ctx context.Context) (*Session, error) {
	for fresh := false; !fresh; {
		h.mu.Lock()
		err := h.unusable()
		var l *link
		if err == nil {
			l = h.bulk.take()
		}
		rests := time.Now().Before(h.bulk.rest)
		h.mu.Unlock()
		switch {
		case err != nil:
			return nil, err
		case l == nil && rests:
			return h.take(ctx, 0)
		case l == nil:
			fresh = true
			l, err = h.dialBulk(ctx)
		}
		if err == nil {
			var s *Session
			if s, err = h.startOn(ctx, l); err == nil {
				return s, nil
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return h.take(ctx, 0)
}

// startOn starts a session on a connection for transfers, which it closes if that
// fails.
func (h *host) startOn(ctx context.Context, l *link) (*Session, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.fleet.opts.OpenTimeout, errSilent)
	defer cancel()
	s, err := l.start(ctx)
	if err != nil {
		l.close()
	}
	return s, err
}

// dialBulk makes a connection for a transfer. It belongs to the host: if ctx ends
// before it is there, the next transfer gets it.
func (h *host) dialBulk(ctx context.Context) (*link, error) {
	done := make(chan *link)
	failed := make(chan error, 1)
	started := h.fleet.spawn(func() {
		conn, err := h.reach()
		if err != nil {
			h.log.Info("No further connection for a transfer", "error", err)
			h.mu.Lock()
			h.bulk.rest = time.Now().Add(bulkRest)
			h.mu.Unlock()
			failed <- err
			return
		}
		l := &link{host: h, conn: conn, sessions: 1, limit: 1, bulk: true}
		h.mu.Lock()
		watched := !h.retired && h.fleet.spawn(l.watch)
		if watched {
			h.bulk.links = append(h.bulk.links, l)
		}
		h.mu.Unlock()
		if !watched {
			l.close()
			failed <- errGone
			return
		}
		select {
		case done <- l:
		case <-ctx.Done():
			h.warm(l)
		}
	})
	if !started {
		return nil, errGone
	}
	select {
	case l := <-done:
		return l, nil
	case err := <-failed:
		return nil, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// warm keeps a connection without a transfer for a while.
func (h *host) warm(l *link) {
	h.mu.Lock()
	keep := !h.retired && !l.closing
	if keep {
		l.unused = time.AfterFunc(warmAge, func() {
			h.mu.Lock()
			before := len(h.bulk.warm)
			h.bulk.warm = without(h.bulk.warm, l)
			mine := len(h.bulk.warm) < before
			h.mu.Unlock()
			if mine {
				l.close()
			}
		})
		h.bulk.warm = append(h.bulk.warm, l)
	}
	h.mu.Unlock()
	if !keep {
		l.close()
	}
}

// without returns links without l.
func without(links []*link, l *link) []*link {
	for i, other := range links {
		if other == l {
			return append(links[:i:i], links[i+1:]...)
		}
	}
	return links
}
