// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// hangUpDelay is how long after a build was asked for a daemon is hung up on at
	// the earliest: Nix 2.34.8 misses a hang-up in the first moments of a build,
	// which then runs to its end.
	hangUpDelay = 100 * time.Millisecond
	// dyingTime is how long a build may go on after its session has ended: sshd does
	// not wait for what it hangs up on, and nix-daemon takes a moment to notice.
	dyingTime = 200 * time.Millisecond
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

// wind returns a function that waits until nothing of a closed stream can run on the
// builder any more, or ctx ends; nil if that is now. It reports false if the builder has
// not told so in time.
func (l *line) wind() func(ctx context.Context) bool {
	l.mu.Lock()
	wait := time.Until(l.hungUp)
	interrupted := l.building && !l.asked.IsZero()
	l.mu.Unlock()
	told := l.end()
	if told == nil && wait <= 0 || l.gone() && !interrupted {
		return nil
	}
	return func(ctx context.Context) bool {
		if told != nil {
			limit, cancel := context.WithTimeout(ctx, max(wait, 0)+endTimeout)
			defer cancel()
			select {
			case <-told:
			case <-limit.Done():
				return false
			}
			wait = 0
			if interrupted {
				wait = dyingTime
			}
		}
		return rest(ctx, wait) == nil
	}
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
