// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Kept connections. The connection of a probe that passed stays open, idle, until that
// of another one replaces it. Its loss is noticed at once where the builder's kernel
// tells, and else, as with a machine that lost its power, by keepalives. Then the
// endpoint is probed at once, with little patience:
//
//   - If that fails, the endpoint is unhealthy at once: two signs that do not depend
//     on each other say that it is gone.
//   - If it passes, sshd was restarted or something on the way forgot the connection:
//     nothing changes.
//
// Where connections are lost again and again and every probe passes, as behind a
// firewall that forgets them, keeping them is worth nothing: it is given up for a
// while.
const (
	// keepaliveInterval is after how long without a byte the builder is asked for one,
	// varied for each connection. After as long again without any, or rather
	// keepaliveMissed times, the connection counts as lost.
	keepaliveInterval = 1250 * time.Millisecond
	keepaliveMissed   = 1
	// keptBytes is how much a builder may send between two keepalives, of which it has
	// nothing but answers and new keys to send, some kilobytes: whoever owns a builder
	// is not to keep the operator busy, least of all with exchanging keys.
	keptBytes = 64 << 10
	// redialTimeout bounds each step of connecting after a loss, where the last time
	// it took less than a third of that.
	redialTimeout = 1500 * time.Millisecond
	// redialGrace is how long after a loss a builder may be unreachable: what restarts
	// sshd ends its connections a moment before it listens again.
	redialGrace = time.Second
	// maxSpurious is how many connections may be lost in a row without a reason
	// before none is kept for keptRespite. Each further one then doubles that, up to
	// maxKeptRespite.
	maxSpurious    = 3
	keptRespite    = 10 * time.Minute
	maxKeptRespite = time.Hour
)

// idleConn is a connection that is kept; *sshconn.Conn is one.
type idleConn interface {
	Done() <-chan struct{}
	Err() error
	KeepAlive(sshconn.Keepalive)
	Close() error
}

// kept is a connection that is being kept. The goroutine that waits for its loss owns
// it, and closes it when drop was called.
type kept struct {
	conn  idleConn
	since time.Time
	drop  context.CancelFunc
}

// keeping is what an endpoint's schedule knows of its kept connections. The prober's
// mutex guards it.
type keeping struct {
	// current is nil where there is none.
	current *kept
	// lost tells that the next probe is there to find out why the last one ended.
	lost bool
	// spurious counts those lost in a row while the builder was well; until their
	// number is forgotten, after none is kept before until.
	spurious int
	until    time.Time
}

// wanted tells whether the next probe's connection is to be kept.
func (k *keeping) wanted(now time.Time) bool { return !now.Before(k.until) }

// release drops the current connection, if there is one.
func (k *keeping) release() {
	if k.current != nil {
		k.current.drop()
		k.current = nil
	}
}

// keep makes conn the kept connection of an endpoint in place of the one before, and
// tells whether it has taken it. Where conn is nil, because the probe failed, the one
// before goes on to tell of its loss until the endpoint is unhealthy: it may have ended
// for the same reason, which then shows a moment later. ctx is that of Start. Called with
// the prober's mutex held.
func (p *Prober) keep(ctx context.Context, e *endpoint, conn idleConn) bool {
	if conn == nil {
		if e.snapshot.State == StateUnhealthy {
			e.keeping.release()
		}
		return false
	}
	if e.keeping.current != nil {
		e.keeping.spurious = 0 // it has lasted as long as it should
	}
	e.keeping.release()
	ctx, cancel := context.WithCancel(ctx)
	k := &kept{conn: conn, since: time.Now(), drop: cancel}
	e.keeping.current = k
	conn.KeepAlive(sshconn.Keepalive{Interval: vary(keepaliveInterval, p.random()), MaxMissed: keepaliveMissed, MaxBytes: keptBytes})
	p.running.Go(func() {
		defer cancel()
		select {
		case <-ctx.Done():
		case <-conn.Done():
			p.lost(e, k)
		}
		_ = conn.Close()
	})
	return true
}

// lost has an endpoint probed at once whose kept connection has ended by itself. A
// probe that is under way does not count: it may have begun before, and would wait for
// the builder with patience.
func (p *Prober) lost(e *endpoint, k *kept) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.keeping.current != k {
		return
	}
	e.keeping.current = nil
	e.keeping.lost = true
	p.onLoss(e.key)
	p.log.Debug("Lost the kept connection to builder",
		"builder", e.key.String(), "endpoint", e.target.Endpoint, "address", e.target.Address(),
		"after", time.Since(k.since), "error", k.conn.Err())
	if e.cancel != nil {
		e.cancel() // its end starts the next one
		return
	}
	p.hasten(e)
	p.rouse()
}

// settle takes in how the probe after a loss ended.
func (p *Prober) settle(e *endpoint, failed bool, now time.Time) {
	k := &e.keeping
	k.lost = false
	if failed {
		return
	}
	if k.spurious++; k.spurious < maxSpurious {
		return
	}
	respite := double(keptRespite, k.spurious-maxSpurious, maxKeptRespite)
	k.until = now.Add(respite)
	if k.spurious == maxSpurious {
		p.log.Info("Connections to builder are lost again and again while it is well: keeping none for a while",
			"builder", e.key.String(), "endpoint", e.target.Endpoint, "address", e.target.Address(),
			"lost", k.spurious, "for", respite)
	}
}

// redial probes after the loss of a kept connection: with little patience, and once
// more where the builder was unreachable for no longer than a restart of sshd takes.
func (p *Prober) redial(ctx context.Context, target *Target, last *Result, known knowledge) (Result, knowledge, error) {
	target.patience = redialPatience(target.Timeout, last)
	began := time.Now()
	result, after, err := p.check(ctx, target, known)
	if err != nil || !unreachable(&result) || time.Since(began) >= redialGrace {
		return result, after, err
	}
	select {
	case <-time.After(redialGrace - time.Since(began)):
		return p.check(ctx, target, after)
	case <-ctx.Done():
		return Result{}, known, context.Cause(ctx)
	}
}

// unreachable tells whether a probe found nobody to log in to.
func unreachable(r *Result) bool {
	failure, failed := r.Failure()
	return failed && failure.Step == StepReachable
}

// redialPatience is the time for each step of connecting after a loss: more for
// builders that are slow to log in to at the best of times.
func redialPatience(timeout time.Duration, last *Result) time.Duration {
	longest := time.Duration(0)
	for i, took := range last.Took {
		switch last.Outcomes[i].Step {
		case StepReachable, StepHostKeyVerified, StepAuthenticated:
			longest = max(longest, took)
		}
	}
	return min(timeout, max(redialTimeout, 3*longest))
}
