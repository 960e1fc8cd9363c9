// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// lingering is how long outputs that nobody has fetched outlive the last
// connection of their client. Nix 2.26 closes the connection that it has built on
// before it opens others to fetch from.
const lingering = 20 * time.Second

// clients knows the build hooks that are connected or were so a moment ago. A
// hook serves one derivation, possibly over several connections.
type clients struct {
	mu    sync.Mutex
	byKey map[connect.Key]*client
	// all has those without a key, too.
	all map[*client]struct{}
}

// client is one build hook. Its fields are guarded by the lock of all.
type client struct {
	of          *clients
	key         connect.Key
	connections int
	deliveries  []*delivery
	// goodbye releases the deliveries some time after the last connection.
	goodbye *time.Timer
}

// delivery is what a successful build has made.
type delivery struct {
	outputs map[string]*output
	// session is where the build ran. It is kept because the builder's garbage
	// collector spares the outputs as long as it lasts. Who uses it holds using.
	builder string
	session Builder
	using   sync.Mutex
}

// output is one store path of a delivery.
type output struct {
	info daemon.PathInfo
	// pin is set if the NAR is in the spool.
	pin *spool.Pin
	// fetched is set once the client has it. Guarded by the lock of clients.
	fetched bool
}

func newClients() *clients {
	return &clients{byKey: map[connect.Key]*client{}, all: map[*client]struct{}{}}
}

// join counts a connection of the client with that key. A key that does not tell
// processes apart makes each connection a client of its own.
func (c *clients) join(key connect.Key) *client {
	identified := key.Namespace != 0 && key.PID != 0
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.byKey[key]
	if one == nil || !identified {
		one = &client{of: c, key: key}
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

// leave ends a connection. With the last one the client's deliveries are
// released, at once if it has them all or could not come back.
func (c *clients) leave(one *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one.connections--; one.connections > 0 {
		return
	}
	if one.owed() == 0 || c.byKey[one.key] != one {
		c.forget(one)
		return
	}
	var goodbye *time.Timer
	goodbye = time.AfterFunc(lingering, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if one.goodbye == goodbye {
			c.forget(one)
		}
	})
	one.goodbye = goodbye
}

// forget releases what a client has. The lock is held.
func (c *clients) forget(one *client) {
	if one.goodbye != nil {
		one.goodbye.Stop()
		one.goodbye = nil
	}
	if c.byKey[one.key] == one {
		delete(c.byKey, one.key)
	}
	delete(c.all, one)
	for _, d := range one.deliveries {
		d.unpin()
		d.session.Close()
	}
	one.deliveries = nil
}

// close releases everything. No session may be running.
func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for one := range c.all {
		c.forget(one)
	}
}

// add makes a delivery available to the client's connections.
func (one *client) add(d *delivery) {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	one.deliveries = append(one.deliveries, d)
}

// find returns an output of the client's builds and the delivery that it belongs
// to, or nil. The newest counts.
func (one *client) find(path string) (*delivery, *output) {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	for i := len(one.deliveries) - 1; i >= 0; i-- {
		if out := one.deliveries[i].outputs[path]; out != nil {
			return one.deliveries[i], out
		}
	}
	return nil, nil
}

func (one *client) fetched(out *output) {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	out.fetched = true
}

// settled reports whether the client has fetched all it may want.
func (one *client) settled() bool {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	return one.owed() == 0
}

// owed counts the outputs that were not fetched. The lock is held.
func (one *client) owed() int {
	n := 0
	for _, d := range one.deliveries {
		for _, out := range d.outputs {
			if !out.fetched {
				n++
			}
		}
	}
	return n
}

func (d *delivery) unpin() {
	for _, out := range d.outputs {
		if out.pin != nil {
			out.pin.Release()
		}
	}
}
