// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// Conn is an established connection. It is safe for concurrent use.
type Conn struct {
	client  *ssh.Client
	watch   *watchConn
	address string
	timeout time.Duration
	hostKey ssh.PublicKey
	used    int

	done chan struct{}  // closed when the connection has ended
	work sync.WaitGroup // every goroutine of this package on this connection

	mu      sync.Mutex
	cause   error // first reason to end
	closing bool  // Close was called: nothing may be spawned any more
}

func newConn(a *attempt, client *ssh.Client) *Conn {
	c := &Conn{
		client: client, watch: a.watch, address: a.config.Address, timeout: a.config.Timeout,
		hostKey: PlainKey(a.hostKey), used: a.login.usedSigner(), done: make(chan struct{}),
	}
	c.work.Go(c.await)
	if a.config.Keepalive.Interval > 0 {
		c.work.Go(func() { c.keepAlive(a.config.Keepalive) })
	}
	return c
}

// spawn runs f in a goroutine that Close waits for. It reports false, and does
// nothing, once Close was called.
func (c *Conn) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	c.work.Go(f)
	return true
}

func (c *Conn) closedError() *Error {
	return &Error{Kind: KindClosed, Step: StepEstablished, Address: c.address}
}

// await ends the connection's life when the transport ends.
func (c *Conn) await() {
	err := c.client.Wait()
	if readErr := c.watch.seen().readErr; readErr != nil {
		err = readErr
	}
	c.end(&Error{Kind: KindLost, Step: StepEstablished, Address: c.address, Err: err})
	close(c.done)
}

// end closes the transport, for the reason given unless there was one before.
func (c *Conn) end(cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.mu.Unlock()
	_ = c.client.Close()
}

// ending tells whether the transport has ended or is being ended from here: writing may
// fail of that before reading does.
func (c *Conn) ending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause != nil || c.watch.seen().readErr != nil
}

// Done is closed when the connection has ended for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err tells why the connection ended, nil before [Conn.Done] is closed: an
// [*Error] of KindLost, KindKeepalive or, after Close, KindClosed.
func (c *Conn) Err() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// Close ends the connection and all sessions on it, and returns when nothing of it
// runs any more. It never waits for the peer.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.end(c.closedError())
	c.work.Wait()
	return nil
}

// HostKey is the host key that the peer proved to have; of a host certificate the
// certified key.
func (c *Conn) HostKey() ssh.PublicKey { return c.hostKey }

// Signer is the index in [Config.Signers] of the one that logged in, or -1 where
// the peer asked for none.
func (c *Conn) Signer() int { return c.used }

// ServerVersion is the peer's identification, fit to be shown.
func (c *Conn) ServerVersion() string { return Printable(string(c.client.ServerVersion())) }

// lost is the error of an operation that failed because the transport failed. It
// makes sure that the connection has ended and tells why.
func (c *Conn) lost(err error) error {
	if readErr := c.watch.seen().readErr; readErr != nil {
		err = readErr
	}
	c.end(&Error{Kind: KindLost, Step: StepEstablished, Address: c.address, Err: err})
	<-c.done
	return c.Err()
}

// step runs work, which talks to the peer, for one step. Where ctx ends or the
// step's time is over first, work goes on in the background until the peer answers
// or the connection ends, and then abandon is called.
func (c *Conn) step(ctx context.Context, step Step, work func() error, abandon func()) error {
	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	var mu sync.Mutex
	abandoned, finished := false, make(chan error, 1)
	running := c.spawn(func() {
		err := work()
		mu.Lock()
		late := abandoned
		finished <- err
		mu.Unlock()
		if late && err == nil {
			abandon()
		}
	})
	if !running {
		return c.closedError()
	}
	var failure *Error
	select {
	case err := <-finished:
		return err
	case <-ctx.Done():
		kind := KindCanceled
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			kind = KindTimeout
		}
		failure = &Error{Kind: kind, Step: step, Address: c.address, Err: context.Cause(ctx)}
	case <-timer.C:
		failure = &Error{Kind: KindTimeout, Step: step, Address: c.address}
	}
	mu.Lock()
	defer mu.Unlock()
	select {
	case err := <-finished: // just in time
		return err
	default:
		abandoned = true
		return failure
	}
}
