// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// lastWords is how long a Client whose write failed, or who got nonsense, waits
// for what the peer has to say about it.
const lastWords = 2 * time.Second

// ClientOptions configures a Client.
type ClientOptions struct {
	// Log receives messages that the daemon sends within the handshake; nil drops
	// them.
	Log MessageSink
	// Limits bounds what the daemon can make us hold.
	Limits Limits
	// StoreDir is the store directory of the daemon, default /nix/store. Store
	// paths elsewhere are errors.
	StoreDir string
}

// Peer is what a daemon says about itself in the handshake.
type Peer struct {
	// Version is the daemon's own protocol version; what is spoken is the lower of
	// it and Protocol.
	Version Version
	// DaemonVersion is the version of its Nix, as text.
	DaemonVersion string
	// Trust says whether operations that need a trusted user are open to us.
	Trust Trust
}

// Client is our end of a connection to a nix-daemon. Its methods run one at a
// time: it is not safe for concurrent use.
//
// A method whose context ends closes the connection, the only way to interrupt
// the protocol, and returns an error that wraps the context's cause. Any error
// but a *RemoteError leaves the connection closed.
type Client struct {
	conn io.ReadWriteCloser
	in   *decoder
	out  *wire.Writer
	peer Peer
	// broken says why the connection cannot be used any more.
	broken error
}

// Peer returns what the daemon said in the handshake.
func (c *Client) Peer() Peer { return c.peer }

// Usable reports whether further operations can be asked for.
func (c *Client) Usable() bool { return c.broken == nil }

// Close closes the connection. Daemons take that as the end of the session and
// stop what it still runs.
func (c *Client) Close() error {
	if c.broken != nil {
		return nil
	}
	c.broken = ErrClosed
	return c.conn.Close()
}

// step runs f, part of the protocol, under ctx.
func (c *Client) step(ctx context.Context, what string, f func() error) error {
	if c.broken != nil {
		return fmt.Errorf("%s: %w", what, c.unusable())
	}
	if ctx.Err() != nil {
		// Nothing is under way, so nothing needs to be interrupted.
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.Close()
		close(closed)
	})
	err := f()
	if !stop() {
		<-closed
		cause := context.Cause(ctx)
		c.broken = cause
		var preamble *PreambleError
		if errors.As(err, &preamble) {
			// What the peer said explains why nothing came of it.
			err = fmt.Errorf("%w; then: %w", preamble, cause)
		} else if err != nil {
			err = cause
		}
	} else if err != nil {
		c.settle(err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// settle closes the connection unless it is still in step after err.
func (c *Client) settle(err error) {
	if !isRemote(err) {
		_ = c.breakOff(err)
	}
}

func (c *Client) unusable() error {
	if errors.Is(c.broken, ErrClosed) {
		return c.broken
	}
	return fmt.Errorf("%w after: %w", ErrClosed, c.broken)
}

// breakOff closes the connection because of err and returns err.
func (c *Client) breakOff(err error) error {
	if c.broken == nil {
		c.broken = err
		_ = c.conn.Close()
	}
	return err
}

// closeAfter closes the connection after a while unless the returned function is
// called before.
func (c *Client) closeAfter(d time.Duration) (stop func() bool) {
	return time.AfterFunc(d, func() { _ = c.conn.Close() }).Stop
}

// call runs one operation: request, messages, reply. The reply of the daemon is
// read by reply, which may be nil.
func (c *Client) call(ctx context.Context, op Operation, sink MessageSink, request func(*wire.Writer), reply func(*decoder) error) error {
	return c.step(ctx, op.String(), func() error {
		c.out.Uint64(uint64(op))
		request(c.out)
		if err := c.out.Flush(); err != nil {
			return c.breakOff(c.whyWriteFailed(err, sink))
		}
		if err := c.in.messages(sink); err != nil {
			return err
		}
		if reply == nil {
			return nil
		}
		c.in.SetBudget(c.in.limits.Message)
		return reply(c.in)
	})
}

// whyWriteFailed looks for the daemon's own words after a failed write: a daemon
// that refuses a request says so and closes.
func (c *Client) whyWriteFailed(err error, sink MessageSink) error {
	defer c.closeAfter(lastWords)()
	if said := c.in.messages(sink); isRemote(said) {
		return said
	}
	return fmt.Errorf("send the request: %w", err)
}
