// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Options for [New]. All fields may be left zero.
type Options struct {
	// Dial opens network connections and is responsible for addresses that must
	// not be connected to. Nil is sshconn.NewDialer with sshconn.DefaultDenied.
	Dial sshconn.DialFunc
	// OnChange is called when the snapshot of an endpoint of this builder has
	// changed in a way that can be seen from outside (times of probes alone do not
	// count). It may be called from several goroutines at once and must not block.
	OnChange func(Key)
	// OnResult is called with the result of every probe, for figures about probes.
	// The same rules apply.
	OnResult func(Key, Result)
	// OnLoss is called when a kept connection has ended by itself. The same rules
	// apply.
	OnLoss func(Key)
	// MaxHandshakes bounds how many SSH key exchanges are computed at the same
	// time. Zero is eight per processor. Waiting for a builder does not count.
	MaxHandshakes int
	// KeepConnections allows leaving a connection to each endpoint open between
	// probes, where its target wants that.
	KeepConnections bool
	// Log gets changes of state (info) and every result (debug). Nil is silence.
	Log *slog.Logger
	// Random returns numbers from [0, 1) to spread probes. Nil is math/rand/v2.
	Random func() float64
}

// Prober probes endpoints again and again. Its methods may be called at any time
// from any goroutine; probing happens while Start runs.
type Prober struct {
	onChange func(Key)
	onResult func(Key, Result)
	onLoss   func(Key)
	log      *slog.Logger
	random   func() float64
	keeps    bool
	check    checkFunc

	mu       sync.Mutex
	builders map[Key]map[string]*endpoint
	agenda   agenda
	wake     chan struct{} // has room for one: the agenda has changed
	running  sync.WaitGroup
}

// checkFunc probes a target once; see checker.check.
type checkFunc func(context.Context, *Target, knowledge) (Result, knowledge, error)

// endpoint is what the prober keeps of each; the prober's mutex guards it.
type endpoint struct {
	key      Key
	target   Target
	snapshot Snapshot
	counts   streaks
	known    knowledge
	keeping  keeping
	// wanted is the token of the last request.
	wanted string

	due   time.Time
	place int // on the agenda, or notQueued
	// revision counts changes of the target that make a probe under way pointless.
	revision int
	// cancel ends the probe under way; nil while there is none.
	cancel    context.CancelFunc
	forgotten bool
}

// New makes a prober without endpoints.
func New(opts Options) *Prober {
	return newProber(opts, newChecker(opts).check)
}

func newProber(opts Options, check checkFunc) *Prober {
	p := &Prober{
		onChange: opts.OnChange, onResult: opts.OnResult, onLoss: opts.OnLoss, log: opts.Log, random: opts.Random,
		keeps: opts.KeepConnections, check: check,
		builders: map[Key]map[string]*endpoint{}, wake: make(chan struct{}, 1),
	}
	if p.onChange == nil {
		p.onChange = func(Key) {}
	}
	if p.onResult == nil {
		p.onResult = func(Key, Result) {}
	}
	if p.onLoss == nil {
		p.onLoss = func(Key) {}
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.random == nil {
		p.random = rand.Float64
	}
	return p
}

// Set makes targets the endpoints of a builder, identified by their names. New ones
// are probed at once, or, where they bring a restored state, spread over one
// interval. A change of anything a probe depends on starts a new one at once and
// ends backoff; one that leads to another machine also forgets what was known.
// Endpoints that are no longer there are forgotten.
func (p *Prober) Set(builder Key, targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.builders[builder]
	current := make(map[string]*endpoint, len(targets))
	for _, target := range targets {
		target = target.withDefaults()
		target.builder = builder
		if e := old[target.Endpoint]; e != nil {
			p.retarget(e, target)
			current[target.Endpoint] = e
			continue
		}
		if current[target.Endpoint] == nil { // names are unique; the first one counts
			current[target.Endpoint] = p.begin(builder, target)
		}
	}
	for name, e := range old {
		if current[name] == nil {
			p.forget(e)
		}
	}
	p.builders[builder] = current
	if len(current) == 0 {
		delete(p.builders, builder)
	}
	p.rouse()
}

// Forget drops a builder and all of its endpoints.
func (p *Prober) Forget(builder Key) { p.Set(builder, nil) }

// Snapshot returns what is known of a builder's endpoints, by name. It is empty for
// a builder that was not set.
func (p *Prober) Snapshot(builder Key) map[string]Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]Snapshot, len(p.builders[builder]))
	for name, e := range p.builders[builder] {
		out[name] = e.snapshot
	}
	return out
}

// Start probes until ctx ends, and returns nil when no probe runs any more. It is
// to be called once.
func (p *Prober) Start(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer p.running.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if next, any := p.launchDue(ctx); any {
			timer.Reset(time.Until(next))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-p.wake:
		}
	}
}

// launchDue starts a probe for every endpoint that is due, and returns when the next
// one will be, if there is any.
func (p *Prober) launchDue(ctx context.Context) (next time.Time, any bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for len(p.agenda) > 0 {
		e := p.agenda[0]
		if e.due.After(now) {
			return e.due, true
		}
		heap.Pop(&p.agenda)
		p.launch(ctx, e)
	}
	return time.Time{}, false
}

// launch probes e aside. What the probe needs is copied: Set may change the endpoint
// meanwhile. Called with the mutex held.
func (p *Prober) launch(ctx context.Context, e *endpoint) {
	probeCtx, cancel := context.WithCancel(ctx)
	e.cancel = cancel
	one := &attempt{target: e.target, due: e.due, revision: e.revision, redial: e.keeping.lost}
	one.target.keep = p.keeps && e.target.KeepConnection && e.keeping.wanted(time.Now())
	known, last := e.known, e.snapshot.Result
	if e.requested() {
		one.request, known = e.wanted, known.anew()
		one.target.asked = time.Now()
	}
	p.running.Go(func() {
		defer cancel()
		if one.redial {
			one.result, one.known, one.err = p.redial(probeCtx, &one.target, &last, known)
		} else {
			one.result, one.known, one.err = p.check(probeCtx, &one.target, known)
		}
		if one.err == nil {
			p.onResult(e.key, one.result)
		}
		if p.finish(ctx, e, one) {
			p.onChange(e.key)
		}
		if one.known.conn != nil { // nobody wanted it any more
			_ = one.known.conn.Close()
		}
	})
}

// attempt is one probe: what it is for and what came of it.
type attempt struct {
	target   Target
	due      time.Time
	revision int
	// request is the token of the request that it answers, or empty.
	request string
	// redial: it is made because a kept connection was lost.
	redial bool

	result Result
	known  knowledge
	err    error
}

// finish takes a probe's result in, puts the endpoint back on the agenda and tells
// whether its snapshot looks different now. It takes the connection that is kept. ctx
// is that of Start.
func (p *Prober) finish(ctx context.Context, e *endpoint, one *attempt) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.cancel = nil
	if e.forgotten {
		return false
	}
	defer p.rouse()
	defer heap.Push(&p.agenda, e)
	now := time.Now()
	if e.revision != one.revision || e.keeping.lost && !one.redial {
		e.due = now // what was found out is about something else, or no longer so
		return false
	}
	if one.err != nil {
		e.due = now.Add(e.target.Interval) // Start ends
		return false
	}
	prev, threshold := e.snapshot, e.target.FailureThreshold
	if one.redial {
		threshold = 1
	}
	e.snapshot, e.counts = observe(prev, e.counts, one.result, threshold, now)
	e.snapshot.Requested, e.snapshot.RequestedResult = prev.Requested, prev.RequestedResult
	if one.request != "" {
		e.snapshot.Requested, e.snapshot.RequestedResult = one.request, one.result
	}
	if one.redial {
		p.settle(e, e.snapshot.State != StateHealthy, now)
	}
	e.known, e.known.conn = one.known, nil
	if e.target.KeepConnection && e.keeping.wanted(now) && p.keep(ctx, e, one.known.conn) {
		one.known.conn = nil
	}
	e.due = one.result.Started.Add(vary(wait(e.target.Interval, e.snapshot.State, e.counts), p.random()))
	if e.requested() {
		e.due = now
	}
	p.report(e, one, prev.State)
	return !sameFace(&prev, &e.snapshot)
}

func (p *Prober) report(e *endpoint, one *attempt, before State) {
	level := slog.LevelDebug
	if e.snapshot.State != before {
		level = slog.LevelInfo
	}
	p.log.Log(context.Background(), level, "Probed builder",
		"builder", e.key.String(), "endpoint", e.target.Endpoint, "address", e.target.Address(),
		"state", string(e.snapshot.State), "reason", string(e.snapshot.Reason), "message", e.snapshot.Message,
		"failures", e.counts.failures, "late", one.result.Started.Sub(one.due), "duration", one.result.Duration, "next", e.due)
}

// rouse makes Start look at the agenda.
func (p *Prober) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
