// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package journal

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// leapShare is the part of a journal that a follower takes at once after it has missed
// something: one in leapShare bytes.
const leapShare = 16

// Follower is one reader of a journal. It is used by one goroutine at a time.
type Follower struct {
	journal *Journal
	// next is the number of the next message to be taken. Like seen it is guarded
	// by the lock of the journal.
	next uint64
	// seen counts the lines before next, taken or missed.
	seen int
	// open has the activities whose beginning was taken and whose end was not, with
	// the number of the message that began them.
	open map[uint64]uint64
	// gap is set once a message was missed. From then on, what belongs to activities
	// of which the follower does not know is left out.
	gap bool
	// missed counts the lines that were missed.
	missed int
	// pending comes before the next message.
	pending []daemon.Message
}

// Follow adds a follower, which begins with the oldest message there is. The caller
// ends it with Leave.
func (j *Journal) Follow() *Follower {
	f := &Follower{journal: j, open: map[uint64]uint64{}}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.followers[f] = struct{}{}
	j.moved()
	return f
}

// Leave ends the follower; the writer no longer waits for it.
func (f *Follower) Leave() {
	j := f.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.followers, f)
	j.taken.fire()
}

// Next takes the next message, waiting for it. At the end of the journal it returns
// io.EOF, and else the cause of ctx's end.
func (f *Follower) Next(ctx context.Context) (daemon.Message, error) {
	j := f.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		if len(f.pending) > 0 {
			m := f.pending[0]
			f.pending = f.pending[1:]
			j.moved()
			return m, nil
		}
		if f.next < j.first {
			f.leap()
			continue
		}
		if f.behind() {
			if m, wanted := f.take(); wanted {
				return m, nil
			}
			continue
		}
		if j.closed {
			return nil, io.EOF
		}
		if err := f.await(ctx); err != nil {
			return nil, err
		}
	}
}

// Missed returns how many lines the follower was told to be missing.
func (f *Follower) Missed() int {
	f.journal.mu.Lock()
	defer f.journal.mu.Unlock()
	return f.missed
}

// behind reports whether there is a message to take. The lock is held.
func (f *Follower) behind() bool { return f.next-f.journal.first < uint64(len(f.journal.entries)) }

// take takes the next message, and reports whether the follower is to have it. The
// lock is held.
func (f *Follower) take() (m daemon.Message, wanted bool) {
	j := f.journal
	e := j.entries[f.next-j.first]
	wanted = f.wants(e.message)
	f.seen += e.lines
	f.next++
	j.moved()
	return e.message, wanted
}

// await waits for more. The lock is held, and given up meanwhile.
func (f *Follower) await(ctx context.Context) error {
	added := f.journal.added.wait()
	f.journal.mu.Unlock()
	defer f.journal.mu.Lock()
	select {
	case <-added:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// wants reports whether the follower is to have a message, and remembers what it then
// knows. The lock is held.
func (f *Follower) wants(m daemon.Message) bool {
	switch m := m.(type) {
	case daemon.StartActivity:
		if len(f.open) < maxActivities {
			f.open[m.ID] = f.next
		}
	case daemon.StopActivity:
		_, known := f.open[m.ID]
		delete(f.open, m.ID)
		return known || !f.gap
	case daemon.ActivityResult:
		_, known := f.open[m.ID]
		return known || !f.gap
	}
	return true
}

// leap goes to the oldest message that is still there, and arranges for the follower
// to hear of what it has missed. The lock is held.
func (f *Follower) leap() {
	j := f.journal
	f.gap = true
	if missed := j.dropped - f.seen; missed > 0 {
		f.missed += missed
		f.pending = append(f.pending, missing(missed))
	}
	f.next, f.seen = j.first, j.dropped
	ended := maps.Clone(f.open)
	maps.DeleteFunc(ended, func(id, number uint64) bool {
		a, still := j.begun[id]
		return still && a.number == number
	})
	// The innermost first, as they began last.
	for _, id := range slices.SortedFunc(maps.Keys(ended), func(a, b uint64) int { return cmp.Compare(ended[b], ended[a]) }) {
		f.pending = append(f.pending, daemon.StopActivity{ID: id})
		delete(f.open, id)
	}
	for _, a := range slices.SortedFunc(maps.Values(j.begun), func(a, b activity) int { return cmp.Compare(a.number, b.number) }) {
		if _, known := f.open[a.start.ID]; known {
			continue
		}
		f.open[a.start.ID] = a.number
		f.pending = append(f.pending, a.start)
	}
	// Some messages at once: beside a fast follower the place is soon overrun again.
	for budget := j.opts.MaxBytes / leapShare; budget > 0 && f.behind(); {
		budget -= j.entries[f.next-j.first].size
		if m, wanted := f.take(); wanted {
			f.pending = append(f.pending, m)
		}
	}
}

// missing is the line that stands for lines that a follower has not got.
func missing(n int) daemon.Message {
	what := "lines of the log are"
	if n == 1 {
		what = "line of the log is"
	}
	return daemon.Next{Text: fmt.Sprintf("[%d %s missing here]\n", n, what)}
}
