// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// room is how many lines fit into the journals of these tests.
const room = 16

func line(n int) daemon.Message { return daemon.Next{Text: fmt.Sprintf("%03d\n", n)} }

// newJournal returns a journal with room for so many lines.
func newJournal() *Journal { return New(Options{MaxBytes: room * size(line(0))}) }

// write appends messages, which must succeed.
func write(t *testing.T, j *Journal, messages ...daemon.Message) {
	t.Helper()
	for _, m := range messages {
		if err := j.Append(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
}

func writeLines(t *testing.T, j *Journal, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		write(t, j, line(n))
	}
}

// describe puts a message into a few words.
func describe(m daemon.Message) string {
	switch m := m.(type) {
	case daemon.Next:
		return strings.TrimSpace(m.Text)
	case daemon.StartActivity:
		return fmt.Sprint("start ", m.ID)
	case daemon.StopActivity:
		return fmt.Sprint("stop ", m.ID)
	case daemon.ActivityResult:
		return fmt.Sprintf("%d> %s", m.ID, m.Fields[0].Text)
	}
	return fmt.Sprintf("%#v", m)
}

// rest takes everything that f gets without waiting, at most limit messages.
func rest(t *testing.T, f *Follower, limit int) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var got []string
	for len(got) < limit {
		m, err := f.Next(ctx)
		if errors.Is(err, io.EOF) {
			return append(got, "EOF")
		}
		if err != nil {
			return got
		}
		got = append(got, describe(m))
	}
	return got
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// lineTexts are the descriptions of lines.
func lineTexts(from, to int) []string {
	var out []string
	for n := from; n < to; n++ {
		out = append(out, describe(line(n)))
	}
	return out
}

func TestEveryFollowerGetsEverything(t *testing.T) {
	t.Parallel()
	j := New(Options{})
	early := j.Follow()
	write(t, j, line(0), daemon.StartActivity{ID: 7}, daemon.LogLine(7, "hello"))
	want(t, "early follower", rest(t, early, 99), "000", "start 7", "7> hello")
	late := j.Follow()
	write(t, j, daemon.StopActivity{ID: 7})
	j.Close()
	want(t, "early follower, to the end", rest(t, early, 99), "stop 7", "EOF")
	want(t, "late follower", rest(t, late, 99), "000", "start 7", "7> hello", "stop 7", "EOF")
	want(t, "follower of a closed journal", rest(t, j.Follow(), 1), "000")
	if err := j.Append(t.Context(), line(1)); !errors.Is(err, errClosed) {
		t.Errorf("Append after Close: %v", err)
	}
}

func TestFollowerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := New(Options{})
		f := j.Follow()
		got := make(chan daemon.Message)
		go func() {
			m, _ := f.Next(t.Context())
			got <- m
		}()
		synctest.Wait()
		write(t, j, line(1))
		want(t, "message", []string{describe(<-got)}, "001")

		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		if _, err := f.Next(ctx); !errors.Is(err, gone) {
			t.Errorf("Next = %v, want the cause", err)
		}
	})
}

func TestWriterWaitsForTheFastestFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		f := j.Follow()
		const all = 10 * room
		go func() {
			writeLines(t, j, 0, all)
			j.Close()
		}()
		var got []string
		for range all {
			time.Sleep(20 * time.Second) // less than the journal's patience
			m, err := f.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, describe(m))
		}
		want(t, "slow, but the only one", got, lineTexts(0, all)...)
	})
}

func TestStalledFollowerLosesLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		f := j.Follow()
		began := time.Now()
		writeLines(t, j, 0, room)
		if took := time.Since(began); took != 0 {
			t.Errorf("the writer waited %v while there was room", took)
		}
		writeLines(t, j, room, 50*room)
		if took := time.Since(began); took != defaultPatience {
			t.Errorf("the writer waited %v, want %v once", took, defaultPatience)
		}
		if j.bytes > j.opts.MaxBytes || len(j.entries) > room {
			t.Errorf("%d messages of %d bytes are kept", len(j.entries), j.bytes)
		}
		got := rest(t, f, 1000)
		want(t, "after the stall", got, append([]string{"[784 lines of the log are missing here]"}, lineTexts(49*room, 50*room)...)...)

		// From now on it is waited for again.
		began = time.Now()
		writeLines(t, j, 0, room+1)
		if took := time.Since(began); took != defaultPatience {
			t.Errorf("the writer waited %v, want %v", took, defaultPatience)
		}
	})
}

func TestSlowFollowerBesideAFastOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		fast, slow := j.Follow(), j.Follow()
		var slowly []string
		for n := 0; n < 20*room; n += room / 2 {
			writeLines(t, j, n, n+room/2)
			want(t, "fast follower", rest(t, fast, 1000), lineTexts(n, n+room/2)...)
			slowly = append(slowly, rest(t, slow, 2)...)
		}
		slowly = append(slowly, rest(t, slow, 1000)...)
		notes, lines, missed := 0, 0, 0
		for _, text := range slowly {
			var n int
			if _, err := fmt.Sscanf(text, "[%d lines of the log", &n); err == nil {
				notes++
				missed += n
				continue
			}
			lines++
		}
		if lines+missed != 20*room || notes == 0 {
			t.Errorf("the slow follower got %d lines and was told of %d missing, want %d in all:\n%s", lines, missed, 20*room, strings.Join(slowly, "\n"))
		}
		if last := slowly[len(slowly)-1]; last != describe(line(20*room-1)) {
			t.Errorf("its last line is %q", last)
		}
	})
}

func TestNobodyIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		f := j.Follow()
		done := make(chan struct{})
		go func() {
			defer close(done)
			writeLines(t, j, 0, 10*room)
		}()
		synctest.Wait()
		began := time.Now()
		f.Leave()
		<-done
		if took := time.Since(began); took != 0 {
			t.Errorf("the writer waited %v for nobody", took)
		}
	})
}

func TestWaitingWriterGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		j.Follow()
		writeLines(t, j, 0, room)
		gone := errors.New("cancelled")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(gone) })
		if err := j.Append(ctx, line(room)); !errors.Is(err, gone) {
			t.Errorf("Append = %v, want the cause", err)
		}
	})
}

func TestHugeMessage(t *testing.T) {
	t.Parallel()
	j := newJournal()
	writeLines(t, j, 0, room)
	huge := daemon.Next{Text: strings.Repeat("x", 4*j.opts.MaxBytes)}
	write(t, j, huge)
	f := j.Follow()
	want(t, "late follower", rest(t, f, 9), "[16 lines of the log are missing here]", describe(huge))
	write(t, j, line(1))
	want(t, "after it", rest(t, f, 9), "001")
	if len(j.entries) != 1 {
		t.Errorf("%d messages kept, want the small one", len(j.entries))
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	j := newJournal()
	const writers, each = 4, 500
	var writing, reading sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			id := uint64(w + 1)
			for n := range each {
				write(t, j, daemon.StartActivity{ID: id}, daemon.LogLine(id, fmt.Sprint(n)), daemon.StopActivity{ID: id})
			}
		})
	}
	for range 4 {
		f := j.Follow()
		reading.Go(func() {
			defer f.Leave()
			for {
				if _, err := f.Next(t.Context()); err != nil {
					if !errors.Is(err, io.EOF) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	writing.Wait()
	j.Close()
	reading.Wait()
}
