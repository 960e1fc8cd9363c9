// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"sync"
	"sync/atomic"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// lingering is how long outputs that nobody has fetched outlive the last
// connection of their hook. Nix 2.26 closes the connection that it has built on
// before it opens others to fetch from.
const lingering = 20 * time.Second

// hooks knows the build hooks that are connected or were so a moment ago. A
// hook serves one derivation, possibly over several connections.
type hooks struct {
	mu    sync.Mutex
	byKey map[connect.Key]*hook
	// all has those without a key, too.
	all map[*hook]struct{}
	// reasons are why connections of hooks were ended whose clients could not be told.
	reasons map[connect.Key]string
}

// hook is one build hook. Its fields are guarded by the lock of all.
type hook struct {
	of          *hooks
	key         connect.Key
	connections int
	deliveries  []*received
	// goodbye releases the deliveries some time after the last connection.
	goodbye *time.Timer
}

// received is a delivery as one hook has it.
type received struct {
	*delivery
	// fetched has the outputs that the client has.
	fetched map[string]bool
}

// delivery is what a successful build has made. Hooks whose builds were equal share
// it.
type delivery struct {
	outputs map[string]*output
	// origin is set while an output is not in the spool.
	origin *origin
	// users counts those who have not released it.
	users atomic.Int32
	// Who builds again has a place in restoring.
	restoring  chan struct{}
	mu         sync.Mutex
	generation int // guarded by mu, like the rest and the pins of outputs
	// builder is where the build ran. hold keeps outputs there while one of them is
	// not in the spool.
	builder string
	hold    Hold
}

// output is one store path of a delivery.
type output struct {
	info daemon.PathInfo
	// pin is set if the NAR is in the spool.
	pin *spool.Pin
}

func newHooks() *hooks {
	return &hooks{byKey: map[connect.Key]*hook{}, all: map[*hook]struct{}{}, reasons: map[connect.Key]string{}}
}

// join counts a connection of the hook with that key. A key that does not tell
// processes apart makes each connection a hook of its own.
func (c *hooks) join(key connect.Key) *hook {
	identified := key.Namespace != 0 && key.PID != 0
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.byKey[key]
	if one == nil || !identified {
		one = &hook{of: c, key: key}
		c.all[one] = struct{}{}
		if identified {
			c.byKey[key] = one
		}
	}
	if one.goodbye != nil {
		one.goodbye.Stop()
		one.goodbye = nil
	}
	one.connections++
	return one
}

// reasonKept is how long a helper may take to ask why its connection was ended.
const reasonKept = 10 * time.Second

// explain keeps the reason for which a connection of a hook is ended. It matters in the
// middle of a NAR, where the protocol has no place for errors: Nix says no more than that
// the connection has ended, but the helper can ask, and tell.
func (c *hooks) explain(key connect.Key, why error) {
	if key.Namespace == 0 || key.PID == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reasons[key] = why.Error()
	time.AfterFunc(reasonKept, func() { c.reason(key) })
}

// reason returns what explain has kept, once.
func (c *hooks) reason(key connect.Key) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	why := c.reasons[key]
	delete(c.reasons, key)
	return why[:min(len(why), connect.MaxReason)]
}

// leave ends a connection. With the last one the hook's deliveries are
// released, at once if it has them all or could not come back.
func (c *hooks) leave(one *hook) {
	c.mu.Lock()
	var left []*received
	defer func() {
		c.mu.Unlock()
		releaseAll(left)
	}()
	if one.connections--; one.connections > 0 {
		return
	}
	if one.owed() == 0 || c.byKey[one.key] != one {
		left = c.forget(one)
		return
	}
	var goodbye *time.Timer
	goodbye = time.AfterFunc(lingering, func() {
		c.mu.Lock()
		var left []*received
		if one.goodbye == goodbye {
			left = c.forget(one)
		}
		c.mu.Unlock()
		releaseAll(left)
	})
	one.goodbye = goodbye
}

// forget makes a hook unknown. It returns what is to be released, which takes its time:
// not under the lock, which is held.
func (c *hooks) forget(one *hook) []*received {
	if one.goodbye != nil {
		one.goodbye.Stop()
		one.goodbye = nil
	}
	if c.byKey[one.key] == one {
		delete(c.byKey, one.key)
	}
	delete(c.all, one)
	left := one.deliveries
	one.deliveries = nil
	return left
}

func releaseAll(deliveries []*received) {
	for _, d := range deliveries {
		d.release()
	}
}

// close releases everything. No session may be running.
func (c *hooks) close() {
	c.mu.Lock()
	var left []*received
	for one := range c.all {
		left = append(left, c.forget(one)...)
	}
	c.mu.Unlock()
	releaseAll(left)
}

// add makes a delivery available to the hook's connections, and releases it when it is
// no longer needed.
func (one *hook) add(d *delivery) {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	one.deliveries = append(one.deliveries, &received{delivery: d, fetched: map[string]bool{}})
}

// find returns an output of the hook's builds and the delivery that it belongs
// to, or nil. The newest counts.
func (one *hook) find(path string) (*delivery, *output) {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	for i := len(one.deliveries) - 1; i >= 0; i-- {
		if out := one.deliveries[i].outputs[path]; out != nil {
			return one.deliveries[i].delivery, out
		}
	}
	return nil, nil
}

// fetched notes that the client has an output of a delivery.
func (one *hook) fetched(d *delivery, path string) {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	for _, r := range one.deliveries {
		if r.delivery == d {
			r.fetched[path] = true
		}
	}
}

// settled reports whether the hook has fetched all it may want.
func (one *hook) settled() bool {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	return one.owed() == 0
}

// owed counts the outputs that were not fetched. The lock is held.
func (one *hook) owed() int {
	n := 0
	for _, d := range one.deliveries {
		n += len(d.outputs) - len(d.fetched)
	}
	return n
}

// newDelivery returns a delivery without outputs that has one user.
func newDelivery(builder string) *delivery {
	d := &delivery{builder: builder, outputs: map[string]*output{}, restoring: make(chan struct{}, 1)}
	d.users.Store(1)
	return d
}

// retain adds a user.
func (d *delivery) retain() *delivery {
	d.users.Add(1)
	return d
}

// release ends the use by one of its users. The last gives back what is held for it.
func (d *delivery) release() {
	if d.users.Add(-1) > 0 {
		return
	}
	d.mu.Lock()
	d.unpin()
	d.letGo()
	d.mu.Unlock()
	if d.origin != nil {
		d.origin.supplier.release()
	}
}

// letGo ends the hold on the builder, if there is one. The lock is held, or nobody else
// has the delivery yet.
func (d *delivery) letGo() {
	if d.hold != nil {
		d.hold.Release()
		d.hold = nil
	}
}

// spooled reports whether all outputs are in the spool.
func (d *delivery) spooled() bool {
	for _, out := range d.outputs {
		if out.pin == nil {
			return false
		}
	}
	return true
}

func (d *delivery) unpin() {
	for _, out := range d.outputs {
		if out.pin != nil {
			out.pin.Release()
		}
	}
}
