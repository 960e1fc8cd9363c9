// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"sync/atomic"
	"time"
)

// Keepalive says how an established connection is watched. A peer is asked
// whenever nothing at all was received for an interval; after MaxMissed questions
// without a single byte received the connection is closed, so a dead peer is
// noticed MaxMissed+1 intervals after its last byte. Any byte counts as alive. Time in
// which this process itself did not run does not count.
type Keepalive struct {
	// Interval zero switches keepalive off.
	Interval  time.Duration
	MaxMissed int
	// MaxBytes ends a connection that receives more within an interval, from a jump
	// host or through it; zero is no limit. It is for connections without sessions,
	// on which a peer has nothing to say.
	MaxBytes int64
}

// vigil judges a peer by when it was heard.
type vigil struct {
	keepalive Keepalive
	heard     time.Time
	missed    int
	// due is when to look next.
	due time.Time
}

func newVigil(k Keepalive, now time.Time) *vigil {
	return &vigil{keepalive: k, heard: now, due: now.Add(k.Interval)}
}

// sign is what a look at a peer tells.
type sign int

const (
	alive  sign = iota
	silent      // it is to be asked
	dead
)

// look judges at a time, with when the peer was heard last. A look that comes late is the
// fault of this side, which was stopped, or had no processor: what was received meanwhile
// may not have been read yet, and what would have been asked was not. So nothing follows
// from silence then, and no answer can be there at once.
func (v *vigil) look(now, heard time.Time) sign {
	late := now.Sub(v.due) > v.keepalive.Interval/2
	switch {
	case heard.After(v.heard):
		v.heard, v.missed = heard, 0
		v.due = heard.Add(v.keepalive.Interval)
		return alive
	case late && v.missed > 0:
		v.due = now.Add(v.keepalive.Interval)
		return alive
	case v.missed >= v.keepalive.MaxMissed:
		return dead
	}
	v.missed++
	v.due = now.Add(v.keepalive.Interval)
	return silent
}

// keepaliveRequest is what OpenSSH asks. No peer knows it; all answer, if only
// that they do not.
const keepaliveRequest = "keepalive@openssh.com"

func (c *Conn) keepAlive(k Keepalive) {
	var asking atomic.Bool
	watch := newVigil(k, time.Now())
	received := c.watch.total()
	timer := time.NewTimer(k.Interval)
	defer timer.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-timer.C:
		}
		before := received
		if received = c.watch.total(); k.MaxBytes > 0 && received-before > k.MaxBytes {
			c.end(&Error{Kind: KindProtocol, Step: StepEstablished, Address: c.address, Detail: "too much data on an idle connection"})
			return
		}
		switch watch.look(time.Now(), c.watch.lastHeard()) {
		case dead:
			c.end(&Error{Kind: KindKeepalive, Step: StepEstablished, Address: c.address})
			return
		case silent:
			c.ask(&asking)
		}
		timer.Reset(time.Until(watch.due))
	}
}

// ask sends the request, one at a time: TCP delivers it or nothing. It happens aside
// because a full send buffer blocks it.
func (c *Conn) ask(asking *atomic.Bool) {
	if !asking.CompareAndSwap(false, true) {
		return
	}
	c.spawn(func() {
		defer asking.Store(false)
		_, _, _ = c.client.SendRequest(keepaliveRequest, true, nil)
	})
}

// KeepAlive watches the connection from now on, as [Config.Keepalive] does from its
// start. It is for connections made without, and to be called at most once.
func (c *Conn) KeepAlive(k Keepalive) {
	c.spawn(func() { c.keepAlive(k) })
}
