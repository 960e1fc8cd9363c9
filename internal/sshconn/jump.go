// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// connectThrough logs in to the jump host and has it connect to the address.
//
// Every connection has one of its own to the jump host; none is shared. So each proves
// that the jump host lets newcomers in, which a connection made long ago would hide;
// one that breaks takes no other with it; and nothing has to count users of it. The
// price is one more handshake, which callers space out as those of builders.
func (a *attempt) connectThrough(ctx context.Context) (net.Conn, *Error) {
	jump, err := Dial(ctx, *a.config.Jump)
	if err != nil {
		return nil, atJumpHost(err)
	}
	conn, failure := jump.tunnel(ctx, a.config.Address)
	if failure != nil {
		_ = jump.Close()
		return nil, failure
	}
	return conn, nil
}

// errHungUp takes the place of io.EOF, which readers further up would take for the end
// of what the machine has to say.
var errHungUp = errors.New("closed by the other end")

// atJumpHost marks what went wrong on the way to the jump host. Errors of this package
// may be shared, so it is a copy that gets the mark.
func atJumpHost(err error) *Error {
	var own *Error
	if !errors.As(err, &own) {
		own = &Error{Kind: KindLost, Step: StepEstablished, Err: err}
	}
	marked := *own
	marked.JumpHost = true
	if errors.Is(marked.Err, io.EOF) {
		marked.Err = errHungUp
	}
	return &marked
}

// tunnel has the peer connect to address (RFC 4254 section 7.2). The connection owns c
// from then on.
func (c *Conn) tunnel(ctx context.Context, address string) (net.Conn, *Error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, &Error{Kind: KindUnreachable, Step: StepForward, Err: err}
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, &Error{Kind: KindUnreachable, Step: StepForward, Err: err}
	}
	payload := ssh.Marshal(struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}{Host: host, Port: uint32(port), OriginHost: "0.0.0.0"})
	var channel ssh.Channel
	var requests <-chan *ssh.Request
	err = c.step(ctx, StepForward, func() (err error) {
		channel, requests, err = c.client.OpenChannel("direct-tcpip", payload)
		return err
	}, func() {
		_ = channel.Close()
		ssh.DiscardRequests(requests)
	})
	if err != nil {
		return nil, c.notForwarded(err)
	}
	t := &tunnel{jump: c, channel: channel, in: newPipe(), out: newPipe()}
	for _, work := range []func(){t.pumpIn, t.pumpOut, func() { ssh.DiscardRequests(requests) }} {
		if !c.spawn(work) {
			return nil, atJumpHost(c.closedError())
		}
	}
	return t, nil
}

// notForwarded makes an error of why there is no tunnel.
func (c *Conn) notForwarded(err error) *Error {
	var own *Error
	var rejected *ssh.OpenChannelError
	switch {
	case errors.As(err, &own) && own.Step == StepForward:
		return own
	case errors.As(err, &rejected):
		out := &Error{Kind: KindForwardRefused, Step: StepForward, Detail: Printable(rejected.Message)}
		switch rejected.Reason {
		case ssh.ConnectionFailed:
			out.Kind = kindOfText(rejected.Message)
		case ssh.ResourceShortage: // which passes, other than a refusal
			out.Kind = KindUnreachable
		}
		return out
	default:
		return atJumpHost(c.lost(err))
	}
}

// kindOfText reads why an SSH server could not connect, of which it sends nothing but
// words: those of its C library for error numbers and for lookups of names.
func kindOfText(message string) Kind {
	message = strings.ToLower(message)
	for _, known := range []struct {
		text string
		kind Kind
	}{
		{"connection refused", KindRefused},
		{"timed out", KindTimeout},
		{"no route", KindUnreachable},
		{"unreachable", KindUnreachable},
		{"temporary failure", KindNameLookup},
		{"try again", KindNameLookup},                   // musl
		{"name or service not known", KindNameUnknown},  // glibc
		{"name does not resolve", KindNameUnknown},      // musl
		{"nodename nor servname", KindNameUnknown},      // BSD, macOS
		{"no address associated", KindNameUnknown},      // the name has records of other types
		{"name has no usable address", KindNameUnknown}, // musl, likewise
		{"unknown host", KindNameUnknown},
	} {
		if strings.Contains(message, known.text) {
			return known.kind
		}
	}
	return KindUnreachable
}

// tunnel is a connection that a jump host has made for us. The ssh package's channels
// know no deadlines and answer to the peer only; pumps between them and the caller
// bring deadlines, and closing at once.
type tunnel struct {
	jump    *Conn
	channel ssh.Channel
	in, out *pipe
}

func (t *tunnel) pumpIn() {
	_, err := t.in.ReadFrom(t.channel)
	t.in.closeWrite(t.why(err))
}

func (t *tunnel) pumpOut() {
	_, err := t.out.WriteTo(t.channel)
	if err == nil {
		_ = t.channel.CloseWrite()
		return
	}
	t.out.closeRead(t.why(err))
}

// why says that it was the jump host's connection that ended, where it was. The end of
// the other connection, seen from the jump host, stays what it is.
func (t *tunnel) why(err error) error {
	if !t.jump.ending() {
		return err
	}
	return atJumpHost(t.jump.lost(err))
}

// Read implements [net.Conn].
func (t *tunnel) Read(p []byte) (int, error) {
	n, err := t.in.Read(p)
	return n, closedHere(err)
}

// Write implements [net.Conn]. It returns when p is in the buffer.
func (t *tunnel) Write(p []byte) (int, error) {
	n, err := t.out.Write(p)
	return n, closedHere(err)
}

func closedHere(err error) error {
	if errors.Is(err, io.ErrClosedPipe) {
		return net.ErrClosed
	}
	return err
}

// CloseWrite ends what is sent; reading goes on.
func (t *tunnel) CloseWrite() error {
	t.out.closeWrite(nil)
	return nil
}

// Close ends the connection and that to the jump host. It waits for no peer: what was
// not sent yet is dropped.
func (t *tunnel) Close() error {
	t.in.closeRead(io.ErrClosedPipe)
	t.out.closeRead(io.ErrClosedPipe)
	_ = t.SetDeadline(time.Time{}) // stops timers
	return t.jump.Close()
}

// LocalAddr is our end of the connection to the jump host.
func (t *tunnel) LocalAddr() net.Addr { return t.jump.client.LocalAddr() }

// RemoteAddr is the jump host's: what it has connected to, it does not tell.
func (t *tunnel) RemoteAddr() net.Addr { return t.jump.client.RemoteAddr() }

// SetDeadline implements [net.Conn].
func (t *tunnel) SetDeadline(at time.Time) error {
	_ = t.SetReadDeadline(at)
	return t.SetWriteDeadline(at)
}

// SetReadDeadline implements [net.Conn].
func (t *tunnel) SetReadDeadline(at time.Time) error {
	t.in.setLimit(&t.in.reading, at)
	return nil
}

// SetWriteDeadline implements [net.Conn].
func (t *tunnel) SetWriteDeadline(at time.Time) error {
	t.out.setLimit(&t.out.writing, at)
	return nil
}
