// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// hangUpDelay is how long after a build was asked for a daemon is hung up on at
	// the earliest: Nix 2.34.8 misses a hang-up in the first moments of a build,
	// which then runs to its end.
	hangUpDelay = 100 * time.Millisecond
	// endTimeout bounds the wait for a builder to say that a session has ended.
	endTimeout = 5 * time.Second
)

// lasting is what a Stream offers whose end takes time.
type lasting interface {
	// CloseAfter closes the stream on this side now and on the builder's after
	// d: what the builder sends until then is thrown away.
	CloseAfter(d time.Duration)
	// Ended is closed when the builder has ended the stream.
	Ended() <-chan struct{}
}

// traffic counts the bytes of all sessions on a builder.
type traffic struct {
	sent, received atomic.Uint64
}

// line is a Stream that is not hung up on while the daemon could miss it.
type line struct {
	Stream
	// traffic is the builder's.
	traffic *traffic

	mu sync.Mutex
	// building is set from the request of a build to its result, asked is when the
	// last byte of the request was sent.
	building bool
	asked    time.Time
	closed   bool
	// hungUp is when the builder's side is closed; valid once closed.
	hungUp time.Time
}

// build notes that what is written next is the request of a build. done notes that
// its result is there.
func (l *line) build() (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.building = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.building = false
	}
}

func (l *line) Read(p []byte) (int, error) {
	n, err := l.Stream.Read(p)
	l.traffic.received.Add(uint64(n))
	return n, err
}

func (l *line) Write(p []byte) (int, error) {
	n, err := l.Stream.Write(p)
	l.traffic.sent.Add(uint64(n))
	l.mu.Lock()
	if l.building && n > 0 {
		l.asked = time.Now()
	}
	l.mu.Unlock()
	return n, err
}

// Close closes the stream, on the builder's side as soon as the daemon cannot miss
// it. It does not block. Further calls do nothing.
func (l *line) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed, l.hungUp = true, time.Now()
	wait := time.Duration(0)
	if l.building && !l.asked.IsZero() {
		wait = time.Until(l.asked.Add(hangUpDelay))
	}
	if wait <= 0 {
		return l.Stream.Close()
	}
	l.hungUp = l.hungUp.Add(wait)
	if s, ok := l.Stream.(lasting); ok {
		s.CloseAfter(wait)
	} else {
		time.AfterFunc(wait, func() { _ = l.Stream.Close() })
	}
	return nil
}

// ended tells when the builder has ended the stream, nil if it has already or does
// not tell. The stream must be closed.
func (l *line) ended() (told <-chan struct{}, limit time.Duration) {
	l.mu.Lock()
	limit = time.Until(l.hungUp)
	l.mu.Unlock()
	told = l.end()
	switch {
	case l.gone():
		return nil, 0
	case told == nil:
		return nil, max(limit, 0)
	}
	return told, max(limit, 0) + endTimeout
}

// end is closed when the builder has ended the stream; nil if it does not tell.
func (l *line) end() <-chan struct{} {
	if s, ok := l.Stream.(lasting); ok {
		return s.Ended()
	}
	return nil
}

// gone reports whether the builder has ended an open stream.
func (l *line) gone() bool {
	select {
	case <-l.end():
		return true
	default:
		return false
	}
}
