// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxHead bounds what is kept, for showing it, of bytes that came before the
// identification.
const maxHead = 4 * MaxText

// identificationPrefix begins the line that ends the wait for an SSH server
// (RFC 4253 section 4.2). Servers may send other lines before it.
const identificationPrefix = "SSH-"

// watchConn observes the bytes of a connection below the ssh package: which step
// is under way (each gets its own deadline), what came before the peer identified
// itself, how reading ended, and when anything was received last.
type watchConn struct {
	net.Conn
	timeout time.Duration
	// awaitTurn, unless nil, is called once when the peer has identified itself.
	awaitTurn func() error
	// onStep, unless nil, is called when a step begins.
	onStep func(Step)

	// born is when the connection was made, heard how long after that the last byte
	// was received. received counts bytes.
	born     time.Time
	heard    atomic.Int64
	received atomic.Int64

	// joins is set once packets are written whole. held is the beginning of one.
	joins atomic.Bool
	held  []byte

	mu         sync.Mutex
	step       Step
	head       []byte // first maxHead bytes before the identification
	line       []byte // start of the current line, as long as identificationPrefix
	identified bool
	answered   bool  // whether anything arrived since the last write
	reacted    bool  // a silent peer hung up when we did
	readErr    error // why reading ended first
}

// lastHeard is when the last byte was received.
func (w *watchConn) lastHeard() time.Time {
	return w.born.Add(time.Duration(w.heard.Load()))
}

// total is how many bytes were received, where there is a jump host from that: it has
// more to say than it passes on.
func (w *watchConn) total() int64 {
	if t, ok := w.Conn.(*tunnel); ok {
		return t.jump.watch.total()
	}
	return w.received.Load()
}

// enter begins a step: its deadline counts from now.
func (w *watchConn) enter(step Step) {
	w.mu.Lock()
	w.step = step
	w.mu.Unlock()
	if w.onStep != nil {
		w.onStep(step)
	}
	deadline := time.Time{}
	if step != StepEstablished {
		deadline = time.Now().Add(w.timeout)
	}
	// Fails on closed connections only, which the next read reports.
	_ = w.SetDeadline(deadline)
}

// Read notes what passes. Like the connection of the ssh package it belongs to, it
// has one reader.
func (w *watchConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.heard.Store(int64(time.Since(w.born)))
		w.received.Add(int64(n))
	}
	w.mu.Lock()
	w.answered = w.answered || n > 0
	justIdentified := w.scan(p[:n])
	silent := !w.identified && len(w.head) == 0
	w.mu.Unlock()

	if err != nil {
		reacted := silent && isTimeout(err) && w.reacts()
		w.mu.Lock()
		w.reacted = reacted
		if w.readErr == nil {
			w.readErr = err
		}
		w.mu.Unlock()
		return n, err
	}
	if justIdentified {
		return n, w.takeTurn()
	}
	return n, nil
}

// takeTurn waits until the key exchange may begin. The wait is ours, not the
// peer's, so no deadline runs meanwhile.
func (w *watchConn) takeTurn() error {
	if w.awaitTurn != nil {
		_ = w.SetDeadline(time.Time{})
		if err := w.awaitTurn(); err != nil {
			// Whoever reads the last byte of the line discards an error that
			// comes with it, so the connection has to end.
			_ = w.Close()
			refused := &Error{Kind: KindCanceled, Step: StepIdentify, Err: err}
			w.mu.Lock()
			w.readErr = refused
			w.mu.Unlock()
			return refused
		}
	}
	w.enter(StepKeyExchange)
	return nil
}

// scan looks for the end of the identification line and reports it once.
func (w *watchConn) scan(p []byte) bool {
	if w.identified {
		return false
	}
	for _, c := range p {
		if c == '\n' {
			if string(w.line) == identificationPrefix {
				w.identified, w.head = true, nil
				return true
			}
			w.line = w.line[:0]
		} else if len(w.line) < len(identificationPrefix) {
			w.line = append(w.line, c)
		}
		if len(w.head) < maxHead {
			w.head = append(w.head, c)
		}
	}
	return false
}

// Write notes that an answer is due. Like the connection of the ssh package it belongs
// to, it has one writer at a time.
func (w *watchConn) Write(p []byte) (int, error) {
	w.mu.Lock()
	w.answered = false
	w.mu.Unlock()
	if w.joins.Load() && len(p) == sshBuffer {
		w.held = append(w.held, p...)
		return len(p), nil
	}
	if len(w.held) == 0 {
		return w.Conn.Write(p)
	}
	whole := net.Buffers{w.held, p}
	n, err := whole.WriteTo(w.Conn)
	n = max(0, n-int64(len(w.held)))
	w.held = w.held[:0]
	return int(n), err
}

// sshBuffer is the size of the ssh package's buffer for writing.
const sshBuffer = 4096

// joinPackets makes packets larger than the ssh package's buffer go out in one piece:
// the package writes what fits into its buffer, and then the rest. Halves wake the peer
// for nothing, and cost a segment.
//
// It rests on the second write following the first at once, which it does unless a
// whole packet is just as large as the buffer. With ciphers that leave the packet's
// length apart none is: all sizes are four more than a multiple of eight.
func (w *watchConn) joinPackets(c ssh.Conn) {
	algorithms, ok := c.(ssh.AlgorithmsConnMetadata)
	if !ok {
		return
	}
	switch algorithms.Algorithms().Write.Cipher {
	case ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305:
		w.joins.Store(true)
	}
}

// watched is what a watchConn has seen.
type watched struct {
	step    Step
	head    string // text instead of an identification
	reacted bool
	readErr error
}

func (w *watchConn) seen() watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	return watched{step: w.step, head: string(w.head), reacted: w.reacted, readErr: w.readErr}
}

// hungUp tells how reading ended where our last message is unanswered.
func (w *watchConn) hungUp() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.answered {
		return nil
	}
	return w.readErr
}

// maxReaction bounds how long reacts waits.
const maxReaction = time.Second

// reacts tells whether a process behind a silent connection notices that we stop
// sending: one that reads sees the end and hangs up. Where all processes of the
// machine are stopped, nothing comes.
func (w *watchConn) reacts() bool {
	half, ok := w.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return false
	}
	if w.SetReadDeadline(time.Now().Add(min(maxReaction, w.timeout/4))) != nil {
		return false
	}
	_, err := w.Conn.Read(make([]byte, 1))
	return !isTimeout(err)
}
