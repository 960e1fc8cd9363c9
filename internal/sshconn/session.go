// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// ExitStatus tells how a command ended.
type ExitStatus struct {
	// Code is the exit status; 0 also where Signal or Missing is set.
	Code int
	// Signal is the name of the signal that ended the command, without "SIG".
	Signal string
	// Missing: the session ended without either (the connection may be alive).
	Missing bool
}

// Success tells whether the command ended by itself with status 0.
func (s ExitStatus) Success() bool { return s == ExitStatus{} }

// String describes it in words.
func (s ExitStatus) String() string {
	switch {
	case s.Missing:
		return "no exit status"
	case s.Signal != "":
		return "killed by SIG" + s.Signal
	default:
		return fmt.Sprintf("exit status %d", s.Code)
	}
}

// errEnded is the error of writing to a command that has ended.
var errEnded = errors.New("the command has ended")

// stderrTail is how much of the end of a command's standard error is kept.
const stderrTail = 4 << 10

// Session is a command running on the peer: Read and Write are its standard output
// and input. One reader and one writer may work at the same time. The ssh package's
// channels answer to the peer only; pumps between them and the caller make Close
// take effect at once, even where the peer is stuck.
type Session struct {
	conn    *Conn
	channel ssh.Channel

	stdout *pipe
	stdin  *pipe
	stderr tail
	closed sync.Once

	ended  chan struct{} // status is set and stderr complete
	status ExitStatus
}

// Start runs command, which the peer's shell interprets. ctx bounds starting, not
// running. Errors are [*Error]; a refusal leaves the connection usable.
func (c *Conn) Start(ctx context.Context, command string) (*Session, error) {
	channel, requests, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	s := &Session{conn: c, channel: channel, ended: make(chan struct{})}
	// Requests must be served from the start: a full queue blocks the connection.
	statuses := make(chan ExitStatus, 1)
	if !c.spawn(func() { statuses <- serve(requests) }) {
		return nil, c.closedError()
	}
	if err := c.exec(ctx, channel, command); err != nil {
		c.discard(channel)
		return nil, err
	}
	if !s.run(statuses) {
		return nil, c.closedError()
	}
	return s, nil
}

func (c *Conn) open(ctx context.Context) (ssh.Channel, <-chan *ssh.Request, error) {
	var channel ssh.Channel
	var requests <-chan *ssh.Request
	err := c.step(ctx, StepSession, func() (err error) {
		channel, requests, err = c.client.OpenChannel("session", nil)
		return err
	}, func() {
		_ = channel.Close()
		ssh.DiscardRequests(requests)
	})
	var own *Error
	var rejected *ssh.OpenChannelError
	switch {
	case err == nil:
		return channel, requests, nil
	case errors.As(err, &own):
		return nil, nil, err
	case errors.As(err, &rejected):
		return nil, nil, &Error{
			Kind: KindSessionRefused, Step: StepSession, Address: c.address,
			Detail: Printable(rejected.Message),
		}
	default:
		return nil, nil, c.lost(err)
	}
}

// exec sends the request of RFC 4254 section 6.5.
func (c *Conn) exec(ctx context.Context, channel ssh.Channel, command string) error {
	payload := ssh.Marshal(struct{ Command string }{command})
	accepted := false
	err := c.step(ctx, StepExec, func() (err error) {
		accepted, err = channel.SendRequest("exec", true, payload)
		return err
	}, func() {})
	var own *Error
	switch {
	case errors.As(err, &own):
		return err
	case err != nil && c.watch.seen().readErr != nil:
		return c.lost(err)
	case err != nil || !accepted:
		// Also: the peer closed the session instead of answering.
		return &Error{Kind: KindExecRefused, Step: StepExec, Address: c.address}
	default:
		return nil
	}
}

// discard closes a channel without waiting for the peer.
func (c *Conn) discard(channel ssh.Channel) {
	c.spawn(func() { _ = channel.Close() })
}

// serve answers the session's requests and returns how the command ended, when the
// session has.
func serve(requests <-chan *ssh.Request) ExitStatus {
	status := ExitStatus{Missing: true}
	for request := range requests {
		switch request.Type {
		case "exit-status": // RFC 4254 section 6.10
			if len(request.Payload) >= 4 {
				status = ExitStatus{Code: int(binary.BigEndian.Uint32(request.Payload))}
			}
		case "exit-signal":
			var signal struct {
				Name       string
				CoreDumped bool
				Message    string
				Language   string
			}
			if ssh.Unmarshal(request.Payload, &signal) == nil {
				status = ExitStatus{Signal: Printable(signal.Name)}
			}
		}
		if request.WantReply {
			_ = request.Reply(false, nil)
		}
	}
	return status
}

// run starts the pumps, unless the connection was closed meanwhile. Each ends with
// its stream, at the latest with the connection.
func (s *Session) run(statuses <-chan ExitStatus) bool {
	s.stdout, s.stdin = newPipe(), newPipe()
	return s.conn.spawn(func() {
		var pumps sync.WaitGroup
		pumps.Go(s.pumpOut)
		pumps.Go(s.pumpIn)
		_, _ = io.Copy(&s.stderr, s.channel.Stderr())
		s.status = <-statuses
		s.stdin.closeRead(s.streamError(errEnded))
		close(s.ended)
		pumps.Wait()
	})
}

func (s *Session) pumpOut() {
	_, err := s.stdout.ReadFrom(s.channel)
	s.stdout.closeWrite(s.streamError(err))
	// The reader may have left before the stream ended: what still comes must not
	// fill the window that standard error shares.
	_, _ = io.Copy(io.Discard, s.channel)
}

func (s *Session) pumpIn() {
	_, err := s.stdin.WriteTo(s.channel)
	if err == nil {
		_ = s.channel.CloseWrite()
		return
	}
	s.stdin.closeRead(s.streamError(errEnded))
}

// streamError makes a stream's end say why, where the connection was lost. A clean
// end stays nil.
func (s *Session) streamError(err error) error {
	if s.conn.ending() {
		return s.conn.lost(err)
	}
	return err
}

// Read reads the command's standard output. It ends with io.EOF when the command
// closed it, and with an [*Error] when the connection was lost or the session
// closed.
func (s *Session) Read(p []byte) (int, error) {
	n, err := s.stdout.Read(p)
	return n, s.closedHere(err)
}

// Write writes to the command's standard input.
func (s *Session) Write(p []byte) (int, error) {
	n, err := s.stdin.Write(p)
	return n, s.closedHere(err)
}

// closedHere puts our error for that of a pipe whose near end was closed.
func (s *Session) closedHere(err error) error {
	if errors.Is(err, io.ErrClosedPipe) {
		return s.conn.closedError()
	}
	return err
}

// CloseWrite ends the command's standard input; output can still be read.
func (s *Session) CloseWrite() error {
	s.stdin.closeWrite(nil)
	return nil
}

// Close ends the session, which makes the peer end the command (its standard input
// and output close). Blocked calls return at once. The peer's answer is not
// awaited.
func (s *Session) Close() error {
	s.closed.Do(func() {
		s.detach()
		s.conn.discard(s.channel)
	})
	return nil
}

// CloseAfter closes this side of the session now, as Close does, and the peer's
// after d. Until then the command runs on with its input open, and what it writes
// is thrown away.
func (s *Session) CloseAfter(d time.Duration) {
	s.closed.Do(func() {
		s.detach()
		s.conn.spawn(func() {
			timer := time.NewTimer(d)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-s.conn.done:
			}
			_ = s.channel.Close()
		})
	})
}

// detach ends blocked calls.
func (s *Session) detach() {
	s.stdout.closeRead(io.ErrClosedPipe)
	s.stdin.closeRead(io.ErrClosedPipe)
}

// Ended is closed when the peer has ended the session, or the connection has.
func (s *Session) Ended() <-chan struct{} { return s.ended }

// Stderr is the end of what the command wrote to standard error so far: at most
// 4 KiB, as the peer sent it. Show it through [Printable].
func (s *Session) Stderr() string { return s.stderr.String() }

// Wait waits until the command has ended and its standard error is complete; what
// is left on standard output can still be read. The error is an [*Error] where the
// connection was lost before, or that of ctx.
func (s *Session) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-s.ended:
	case <-ctx.Done():
		select {
		case <-s.ended: // just in time
		default:
			return ExitStatus{Missing: true}, context.Cause(ctx)
		}
	}
	if s.status.Missing && s.conn.ending() {
		return s.status, s.conn.lost(io.ErrUnexpectedEOF)
	}
	return s.status, nil
}

// tail keeps the last stderrTail bytes written to it.
type tail struct {
	mu   sync.Mutex
	data []byte
}

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if len(p) > stderrTail {
		p = p[len(p)-stderrTail:]
	}
	if over := len(t.data) + len(p) - stderrTail; over > 0 {
		t.data = t.data[:copy(t.data, t.data[over:])]
	}
	t.data = append(t.data, p...)
	return n, nil
}

// String returns what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}
