// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/storepath"
)

const (
	// keeperAge is how long a session takes new paths to hold. It bounds how long
	// what nobody needs any more is kept from garbage collection.
	keeperAge = 2 * time.Minute
	// keeperPaths is how many paths a session holds, but for the last question.
	keeperPaths = 10000
	// storeDir is the store directory of builders.
	storeDir = "/nix/store"
)

// keeping is what a host holds for the dispatcher. Its lock is taken after the
// host's, never before.
type keeping struct {
	mu sync.RWMutex
	// current takes new paths; nil without any.
	current *keeper
	// keepers are all that are there, current or not.
	keepers map[*keeper]struct{}
}

// keeper is a session of which every path that was asked about is a temporary root
// for as long as it lives. What was valid once therefore stays so.
type keeper struct {
	host *host
	ctx  context.Context
	// cancel ends the session; nothing may rest on it any more.
	cancel context.CancelFunc

	// The rest is guarded by the lock of the host's keeping.

	born time.Time
	// asked is how many paths are held, there or not.
	asked int
	valid map[string]bool
	// believed are paths that are valid unless an answer under way says otherwise.
	believed map[string]bool
	// queue is what the session has to do, in order.
	queue   []task
	running bool
	// next is the question in the queue that can take more paths, and asking says
	// which it has.
	next   *question
	asking map[string]bool
	// session is opened by the first task; only tasks use it.
	session *Session
	holds   map[*Hold]struct{}
	// expiry ends a keeper on which nothing rests.
	expiry *time.Timer
	// err is set when the session is lost or was ended.
	err error
}

// task is something that a keeper's session is used for. Either run is called or
// abort.
type task struct {
	run   func(*Session)
	abort func(error)
}

// question is one flight to the daemon. Its results are set when done is closed.
type question struct {
	paths []string
	done  chan struct{}
	valid map[string]bool
	err   error
}

// askable reports whether a daemon can be asked about path. It ends the session over
// others.
func askable(path string) bool {
	_, err := storepath.Parse(storeDir, path)
	return err == nil
}

// known reports whether path is held, or believed to be, by the current keeper.
func (g *keeping) known(path string) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	k := g.current
	return k != nil && (k.valid[path] || k.believed[path])
}

// keeper returns the session that takes new paths. The keeping's lock is held.
func (h *host) keeper() *keeper {
	g := &h.keep
	if k := g.current; k != nil {
		if time.Since(k.born) < keeperAge && k.asked < keeperPaths {
			return k
		}
		g.retire(k)
	}
	k := &keeper{
		host: h, born: time.Now(),
		valid: map[string]bool{}, believed: map[string]bool{}, asking: map[string]bool{}, holds: map[*Hold]struct{}{},
	}
	k.ctx, k.cancel = context.WithCancel(h.fleet.ctx)
	k.expiry = time.AfterFunc(keeperAge, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.retire(k)
	})
	if g.keepers == nil {
		g.keepers = map[*keeper]struct{}{}
	}
	g.current, g.keepers[k] = k, struct{}{}
	return k
}

// retire makes k take no more paths. The lock is held.
func (g *keeping) retire(k *keeper) {
	if g.current == k {
		g.current = nil
	}
	g.settle(k)
}

// settle ends k if it is of no more use. The lock is held.
func (g *keeping) settle(k *keeper) {
	if g.current != k && len(k.holds) == 0 && !k.running && k.err == nil {
		k.stop(errHoldLost)
	}
}

// stop ends k because of err. The lock is held.
func (k *keeper) stop(err error) {
	if k.err != nil {
		return
	}
	g := &k.host.keep
	k.err = err
	if g.current == k {
		g.current = nil
	}
	delete(g.keepers, k)
	k.expiry.Stop()
	k.cancel()
}

// doubt makes new questions go to a new session.
func (h *host) doubt() {
	h.keep.mu.Lock()
	defer h.keep.mu.Unlock()
	if k := h.keep.current; k != nil {
		h.keep.retire(k)
	}
}

// ask returns the question that will ask about path. It has not been asked yet: what
// the builder gets meanwhile counts. The lock is held.
func (k *keeper) ask(path string) *question {
	if k.next == nil {
		q := &question{done: make(chan struct{}), valid: map[string]bool{}}
		k.next = q
		k.enqueue(task{
			run: func(s *Session) { k.put(s, q) },
			abort: func(err error) {
				q.err = err
				close(q.done)
			},
		})
	}
	if !k.asking[path] {
		k.asking[path] = true
		k.next.paths = append(k.next.paths, path)
	}
	return k.next
}

// enqueue gives the session something to do. The lock is held.
func (k *keeper) enqueue(t task) {
	k.queue = append(k.queue, t)
	if !k.running {
		k.running = true
		if !k.host.fleet.spawn(k.run) {
			k.stop(&LostError{Builder: k.host.id, Err: errGone})
			k.running = false
			t.abort(k.err)
		}
	}
}

// believe holds paths in the background.
func (h *host) believe(paths []string) {
	h.keep.mu.Lock()
	defer h.keep.mu.Unlock()
	k := h.keeper()
	for _, path := range paths {
		if askable(path) && !k.valid[path] {
			k.believed[path] = true
			k.ask(path)
		}
	}
}

// run does what is in the queue.
func (k *keeper) run() {
	g := &k.host.keep
	for {
		g.mu.Lock()
		if k.err != nil || len(k.queue) == 0 {
			rest, err := k.queue, k.err
			k.queue, k.next, k.running = nil, nil, false
			g.settle(k)
			g.mu.Unlock()
			for _, t := range rest {
				t.abort(err)
			}
			return
		}
		t := k.queue[0]
		k.queue = k.queue[1:]
		g.mu.Unlock()
		if err := k.open(); err != nil {
			k.lose(err)
			t.abort(err)
			continue
		}
		t.run(k.session)
	}
}

// lose ends k because of err. Who is told of err after that gets another keeper.
func (k *keeper) lose(err error) {
	k.host.keep.mu.Lock()
	defer k.host.keep.mu.Unlock()
	k.stop(err)
}

// open opens the session unless it is open.
func (k *keeper) open() error {
	if k.session != nil {
		return nil
	}
	s, err := k.host.take(k.ctx, 0)
	if err != nil {
		return k.reason(err)
	}
	if !k.host.fleet.spawn(func() { k.watch(s) }) {
		s.discard()
		return &LostError{Builder: k.host.id, Err: errGone}
	}
	k.session = s
	return nil
}

// reason makes a *LostError of the error of a keeper whose context may have ended.
func (k *keeper) reason(err error) error {
	k.host.keep.mu.RLock()
	defer k.host.keep.mu.RUnlock()
	var lost *LostError
	switch {
	case k.err != nil:
		return k.err
	case errors.As(err, &lost):
		return err
	}
	return &LostError{Builder: k.host.id, Err: err}
}

// watch closes the session when the keeper ends, and ends the keeper when the
// session does.
func (k *keeper) watch(s *Session) {
	select {
	case <-k.ctx.Done():
	case <-s.line.end():
	case <-s.link.conn.Done():
	}
	err := errHoldLost
	select {
	case <-s.link.conn.Done():
		err = s.link.conn.Err()
	default:
	}
	k.host.keep.mu.Lock()
	k.stop(&LostError{Builder: k.host.id, Err: err})
	k.host.keep.mu.Unlock()
	s.discard()
}

// put asks a question.
func (k *keeper) put(s *Session, q *question) {
	defer close(q.done)
	g := &k.host.keep
	g.mu.Lock()
	k.next = nil
	clear(k.asking)
	var paths []string
	for _, path := range q.paths {
		if k.valid[path] {
			q.valid[path] = true // since it was put into the queue
		} else {
			paths = append(paths, path)
		}
	}
	k.asked += len(paths)
	g.mu.Unlock()

	valid, err := s.holdPaths(k.ctx, paths)
	var remote *daemon.RemoteError
	refused := errors.As(err, &remote) && s.client.Usable()
	if err != nil && !refused {
		q.err = k.reason(err)
		k.lose(q.err)
		return
	}
	if refused {
		k.host.unheld(remote)
	}
	g.mu.Lock()
	for _, path := range paths {
		delete(k.believed, path)
	}
	for _, path := range valid {
		q.valid[path] = true
		if !refused {
			k.valid[path] = true
		}
	}
	g.mu.Unlock()
}

// unheld notes that the builder does not hold paths. Its answers are used, but not
// remembered: garbage collection may take paths before they are used, and then the
// build is tried once more.
func (h *host) unheld(err error) {
	h.unheldOnce.Do(func() {
		h.log.Warn("Builder does not keep paths from its garbage collection for us; inputs that it collects between question and build are sent again", "error", err)
	})
}

// infos asks what the builder knows about paths that are valid.
func (k *keeper) infos(ctx context.Context, paths []string) (map[string]daemon.PathInfo, error) {
	type answer struct {
		infos []*daemon.PathInfo
		err   error
	}
	answers := make(chan answer, 1)
	g := &k.host.keep
	g.mu.Lock()
	if err := k.err; err != nil {
		g.mu.Unlock()
		return nil, err
	}
	k.enqueue(task{
		run: func(s *Session) {
			infos, err := s.queryPathInfos(k.ctx, paths)
			if err != nil {
				err = k.reason(err)
				k.lose(err)
			}
			answers <- answer{infos, err}
		},
		abort: func(err error) { answers <- answer{nil, err} },
	})
	g.mu.Unlock()
	select {
	case a := <-answers:
		found := make(map[string]daemon.PathInfo, len(a.infos))
		for i, info := range a.infos {
			if info != nil {
				found[paths[i]] = *info
			}
		}
		return found, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
