// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// limitError ends a build that has exceeded a limit of the dispatcher.
type limitError struct {
	// status is how Nix calls it.
	status daemon.BuildStatus
	// text says what the build did, flag which setting forbids it.
	text, flag string
}

func (e *limitError) Error() string {
	return fmt.Sprintf("%s: more than the dispatcher allows (%s)", e.text, e.flag)
}

// asResult is the answer to a build that was ended by a limit, or nil if err is
// something else.
func asResult(err error) *daemon.BuildResult {
	var limit *limitError
	if !errors.As(err, &limit) {
		return nil
	}
	return &daemon.BuildResult{Status: limit.status, ErrorMessage: limit.Error()}
}

// notLimit is err, unless that has become a result.
func notLimit(err error) error {
	if asResult(err) != nil {
		return nil
	}
	return err
}

// limiter ends attempts that exceed the limits. Only what happens between begin and end
// counts: neither waiting nor transfers.
type limiter struct {
	limits Limits

	mu sync.Mutex
	// cancel ends the attempt on builder; nil between attempts.
	cancel  context.CancelCauseFunc
	builder string
	// silent and whole run while the build does. nil without a limit.
	silent, whole *time.Timer
	building      bool
	logged        uint64
}

func newLimiter(limits Limits) *limiter { return &limiter{limits: limits} }

// watch begins an attempt, which cancel ends.
func (l *limiter) watch(builder string, cancel context.CancelCauseFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.builder, l.cancel, l.logged = builder, cancel, 0
}

// rest ends the attempt.
func (l *limiter) rest() {
	l.end()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cancel = nil
}

// begin starts the clocks.
func (l *limiter) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.building = true
	l.silent = l.clock(l.limits.Silence, func() error {
		return &limitError{daemon.StatusTimedOut, fmt.Sprintf("the build was silent for %v on builder %s", l.limits.Silence, l.builder), "--max-silent-time"}
	})
	l.whole = l.clock(l.limits.Duration, func() error {
		return &limitError{daemon.StatusTimedOut, fmt.Sprintf("the build ran for %v on builder %s", l.limits.Duration, l.builder), "--build-timeout"}
	})
}

// clock returns a timer that ends the attempt, or nil without a limit. The lock is held.
func (l *limiter) clock(limit time.Duration, why func() error) *time.Timer {
	if limit <= 0 {
		return nil
	}
	var timer *time.Timer
	timer = time.AfterFunc(limit, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		// It may have been stopped, or set again, in this moment.
		if l.building && l.cancel != nil && (timer == l.silent || timer == l.whole) {
			l.cancel(why())
		}
	})
	return timer
}

// end stops the clocks.
func (l *limiter) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.building = false
	for _, timer := range []*time.Timer{l.silent, l.whole} {
		if timer != nil {
			timer.Stop()
		}
	}
	l.silent, l.whole = nil, nil
}

// heard notes a message of the builder, after which it is silent no longer. The clock
// rests until passedOn. The error is that there was too much.
func (l *limiter) heard(m daemon.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.silent != nil {
		l.silent.Stop()
	}
	if !l.building || l.limits.Log == 0 {
		return nil
	}
	if l.logged += logSize(m); l.logged > l.limits.Log {
		return &limitError{daemon.StatusLogLimitExceeded, fmt.Sprintf("the build has written %d bytes of log on builder %s", l.logged, l.builder), "--max-log-size"}
	}
	return nil
}

// passedOn starts the clock of the builder's silence again.
func (l *limiter) passedOn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.silent != nil {
		l.silent.Reset(l.limits.Silence)
	}
}

// logSize is what a message adds to a build's log, in bytes.
func logSize(m daemon.Message) uint64 {
	switch m := m.(type) {
	case daemon.Next:
		return uint64(len(m.Text))
	case daemon.ActivityResult:
		if m.Type != daemon.ResultBuildLogLine {
			return 0
		}
		n := 1 // the newline
		for _, f := range m.Fields {
			n += len(f.Text)
		}
		return uint64(n)
	}
	return 0
}
