// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package journal keeps what a build tells its users: a bounded log of daemon
// messages that any number of followers read, each at its own pace.
//
// The writer waits for the fastest follower, so that one who reads misses nothing,
// but not for ever: when nobody has taken a message for a while, the oldest ones
// are dropped. Who falls behind, or joins when some are gone, is told how many
// lines are missing, and gets the activities right all the same: those that began
// in the gap and still go on are begun, those that ended in it are ended.
package journal

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

const (
	defaultMaxBytes = 1 << 20
	defaultPatience = 30 * time.Second

	// maxActivities bounds the open activities that are remembered, and
	// maxActivityBytes what the descriptions of those take whose beginning is no
	// longer in the log.
	maxActivities    = 4096
	maxActivityBytes = 256 << 10

	// overhead is what a message takes besides its texts.
	overhead = 128
)

// errClosed answers messages after the end.
var errClosed = errors.New("the log of the build is closed")

// Options configure a [Journal]. The zero value is useful.
type Options struct {
	// MaxBytes bounds the messages kept; 1 MiB if zero. A single larger message is
	// kept alone.
	MaxBytes int
	// Patience is how long the writer waits for followers none of which takes
	// anything; 30 s if zero.
	Patience time.Duration
}

// Journal is the log of one build. It is safe for concurrent use.
type Journal struct {
	opts Options

	mu sync.Mutex
	// entries are the messages kept; the first has the number first.
	entries []entry
	first   uint64
	bytes   int
	// dropped counts the lines before the first entry.
	dropped int
	// begun has the activities that were open where the entries begin, open those
	// that are open where they end, by the number of the message that began them.
	begun      map[uint64]activity
	begunBytes int
	open       map[uint64]uint64
	followers  map[*Follower]struct{}
	// careless is set once no follower has taken anything for too long, until one
	// does.
	careless bool
	closed   bool
	// added wakes followers, taken wakes writers.
	added, taken signal
}

type entry struct {
	message daemon.Message
	size    int
	lines   int
}

// activity is an open activity and the number of the message that began it: IDs are
// used again by the next builder.
type activity struct {
	number uint64
	start  daemon.StartActivity
	size   int
}

// New returns an empty journal.
func New(opts Options) *Journal {
	opts.MaxBytes = cmp.Or(opts.MaxBytes, defaultMaxBytes)
	opts.Patience = cmp.Or(opts.Patience, defaultPatience)
	return &Journal{opts: opts, begun: map[uint64]activity{}, open: map[uint64]uint64{}, followers: map[*Follower]struct{}{}}
}

// Append adds a message. It waits while there is no room that the fastest follower
// does not need. The error is the cause of ctx's end, or that the journal is closed.
func (j *Journal) Append(ctx context.Context, m daemon.Message) error {
	e := entry{message: m, size: size(m), lines: lines(m)}
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.bytes > 0 && j.bytes+e.size > j.opts.MaxBytes {
		if !j.mayDrop() {
			if err := j.await(ctx); err != nil {
				return err
			}
			continue
		}
		j.drop()
	}
	if j.closed {
		return errClosed
	}
	j.note(m)
	j.entries = append(j.entries, e)
	j.bytes += e.size
	j.added.fire()
	return nil
}

// mayDrop reports whether the first entry is needed by no follower that is waited
// for. The lock is held.
func (j *Journal) mayDrop() bool {
	if j.careless || j.closed || len(j.followers) == 0 {
		return true
	}
	for f := range j.followers {
		if f.next > j.first {
			return true
		}
	}
	return false
}

// await waits until a follower has taken something, but not longer than the
// journal's patience. The lock is held, and given up meanwhile.
func (j *Journal) await(ctx context.Context) error {
	taken := j.taken.wait()
	j.mu.Unlock()
	defer j.mu.Lock()
	timer := time.NewTimer(j.opts.Patience)
	defer timer.Stop()
	select {
	case <-taken:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		j.mu.Lock()
		// A follower that came in this moment is believed.
		select {
		case <-taken:
		default:
			j.careless = true
		}
		j.mu.Unlock()
	}
	return nil
}

// moved notes that a follower is alive. The lock is held.
func (j *Journal) moved() {
	j.careless = false
	j.taken.fire()
}

// drop forgets the first entry. The lock is held.
func (j *Journal) drop() {
	e := j.entries[0]
	switch m := e.message.(type) {
	case daemon.StartActivity:
		if len(j.begun) < maxActivities && j.begunBytes+e.size <= maxActivityBytes {
			j.begun[m.ID] = activity{number: j.first, start: m, size: e.size}
			j.begunBytes += e.size
		}
	case daemon.StopActivity:
		j.begunBytes -= j.begun[m.ID].size
		delete(j.begun, m.ID)
	}
	j.entries[0] = entry{}
	j.entries = j.entries[1:]
	j.first++
	j.bytes -= e.size
	j.dropped += e.lines
}

// note remembers which activities are open after m. The lock is held.
func (j *Journal) note(m daemon.Message) {
	switch m := m.(type) {
	case daemon.StartActivity:
		if len(j.open) < maxActivities {
			j.open[m.ID] = j.first + uint64(len(j.entries))
		}
	case daemon.StopActivity:
		delete(j.open, m.ID)
	}
}

// StopActivities ends the activities that are open: a builder that was lost will not
// end them, and followers would show them for ever beside those of the next one.
func (j *Journal) StopActivities(ctx context.Context) error {
	j.mu.Lock()
	open := slices.SortedFunc(maps.Keys(j.open), func(a, b uint64) int { return cmp.Compare(j.open[b], j.open[a]) })
	j.mu.Unlock()
	for _, id := range open {
		if err := j.Append(ctx, daemon.StopActivity{ID: id}); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the journal. Followers get what is in it, and then the end.
func (j *Journal) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	j.added.fire()
	j.taken.fire()
}

// size is what a message takes, roughly.
func size(m daemon.Message) int {
	n := overhead
	switch m := m.(type) {
	case daemon.Next:
		n += len(m.Text)
	case daemon.StartActivity:
		n += len(m.Text) + fieldsSize(m.Fields)
	case daemon.ActivityResult:
		n += fieldsSize(m.Fields)
	}
	return n
}

func fieldsSize(fields []daemon.Field) int {
	n := 0
	for _, f := range fields {
		n += overhead/2 + len(f.Text)
	}
	return n
}

// lines is how many lines a user sees of a message.
func lines(m daemon.Message) int {
	switch m := m.(type) {
	case daemon.Next:
		return 1
	case daemon.ActivityResult:
		if m.Type == daemon.ResultBuildLogLine {
			return 1
		}
	}
	return 0
}

// signal wakes all who wait for something. Its owner's lock guards it.
type signal struct{ c chan struct{} }

// wait returns a channel that the next fire closes.
func (s *signal) wait() <-chan struct{} {
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

func (s *signal) fire() {
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}
