// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// streamSize is how much a stream holds before writing blocks, as socket buffers do.
const streamSize = 256 << 10

// stream is one direction of a connection in memory.
type stream struct {
	mu   sync.Mutex
	cond *sync.Cond
	data []byte
	// ended: the writer has closed; gone: the reader has.
	ended, gone bool
}

func newStream() *stream {
	s := &stream{}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *stream) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.cond.Broadcast()
}

// deadline is a point in time that ends waiting on a stream. The stream's mutex
// guards it.
type deadline struct {
	stream  *stream
	timer   *time.Timer
	version int
	expired bool
}

func (d *deadline) set(t time.Time) {
	d.stream.update(func() {
		if d.timer != nil {
			d.timer.Stop()
			d.timer = nil
		}
		d.version++
		d.expired = false
		if t.IsZero() {
			return
		}
		if wait := time.Until(t); wait > 0 {
			version := d.version
			d.timer = time.AfterFunc(wait, func() { d.expire(version) })
		} else {
			d.expired = true
		}
	})
}

func (d *deadline) expire(version int) {
	d.stream.update(func() {
		if d.version == version {
			d.expired = true
		}
	})
}

// memConn is one end of a connection in memory.
type memConn struct {
	local, remote memAddr
	in, out       *stream
	read, write   *deadline
}

// pipe makes a connection between two addresses.
func pipe(client, server string) (*memConn, *memConn) {
	up, down := newStream(), newStream()
	end := func(local, remote string, in, out *stream) *memConn {
		return &memConn{
			local: memAddr(local), remote: memAddr(remote), in: in, out: out,
			read: &deadline{stream: in}, write: &deadline{stream: out},
		}
	}
	return end(client, server, down, up), end(server, client, up, down)
}

func (c *memConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "memory", Source: c.local, Addr: c.remote, Err: err}
}

// Read returns what has arrived, or waits for it.
func (c *memConn) Read(p []byte) (int, error) {
	s := c.in
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.gone:
			return 0, c.opError("read", net.ErrClosed)
		case c.read.expired:
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case len(s.data) > 0:
			n := copy(p, s.data)
			s.data = s.data[n:]
			s.cond.Broadcast()
			return n, nil
		case s.ended:
			return 0, io.EOF
		}
		s.cond.Wait()
	}
}

// Write waits until all of p has found room.
func (c *memConn) Write(p []byte) (int, error) {
	s := c.out
	s.mu.Lock()
	defer s.mu.Unlock()
	written := 0
	for {
		switch {
		case s.ended:
			return written, c.opError("write", net.ErrClosed)
		case s.gone:
			return written, c.opError("write", os.NewSyscallError("write", syscall.EPIPE))
		case c.write.expired:
			return written, c.opError("write", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return written, nil
		}
		if room := streamSize - len(s.data); room > 0 {
			n := min(room, len(p))
			s.data = append(s.data, p[:n]...)
			p = p[n:]
			written += n
			s.cond.Broadcast()
			continue
		}
		s.cond.Wait()
	}
}

// CloseWrite tells the peer that nothing more comes.
func (c *memConn) CloseWrite() error {
	c.out.update(func() { c.out.ended = true })
	return nil
}

// Close ends both directions.
func (c *memConn) Close() error {
	_ = c.SetDeadline(time.Time{})
	c.out.update(func() { c.out.ended = true })
	c.in.update(func() { c.in.gone = true; c.in.data = nil })
	return nil
}

// LocalAddr is this end's address.
func (c *memConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the other end's address.
func (c *memConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *memConn) SetDeadline(t time.Time) error {
	c.read.set(t)
	c.write.set(t)
	return nil
}

// SetReadDeadline bounds waiting in Read.
func (c *memConn) SetReadDeadline(t time.Time) error {
	c.read.set(t)
	return nil
}

// SetWriteDeadline bounds waiting in Write.
func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.write.set(t)
	return nil
}
