// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package journal

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// reader is a follower with what its client would know.
type reader struct {
	f     *Follower
	open  map[uint64]bool
	lines int
}

// take reads at most n messages, none of which may make no sense to the client.
func (r *reader) take(n int) (ended bool, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range n {
		m, err := r.f.Next(ctx)
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, nil // nothing more at the moment
		}
		switch m := m.(type) {
		case daemon.StartActivity:
			if r.open[m.ID] {
				return false, fmt.Errorf("activity %d begins twice", m.ID)
			}
			r.open[m.ID] = true
		case daemon.StopActivity:
			if !r.open[m.ID] {
				return false, fmt.Errorf("activity %d ends without having begun", m.ID)
			}
			delete(r.open, m.ID)
		case daemon.ActivityResult:
			if !r.open[m.ID] {
				return false, fmt.Errorf("result of activity %d, which has not begun", m.ID)
			}
			r.lines++
		case daemon.Next:
			var missed int
			if n, _ := fmt.Sscanf(m.Text, "[%d line", &missed); n == 1 {
				r.lines += missed
			} else {
				r.lines++
			}
		}
	}
	return false, nil
}

// FuzzFollowers has builders that begin and end activities in any order, and followers
// that come at any time and read at any pace.
func FuzzFollowers(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 32 {
		steps := make([]byte, 2048)
		for i := range steps {
			steps[i] = byte(random.IntN(256))
		}
		f.Add(steps)
	}
	f.Fuzz(func(t *testing.T, steps []byte) {
		j := newJournal()
		ctx := t.Context()
		var readers []*reader
		running := map[uint64]bool{}
		written := 0
		for _, step := range steps {
			id := uint64(step>>3) % 8
			j.careless = true // nobody waits here
			switch step % 8 {
			case 0, 1:
				if !running[id] {
					running[id] = true
					_ = j.Append(ctx, daemon.StartActivity{ID: id})
				}
			case 2:
				if running[id] {
					delete(running, id)
					_ = j.Append(ctx, daemon.StopActivity{ID: id})
				}
			case 3, 4:
				if running[id] {
					written++
					_ = j.Append(ctx, daemon.LogLine(id, "x"))
				}
			case 5:
				written++
				_ = j.Append(ctx, daemon.Next{Text: "y"})
			case 6:
				if step < 32 && len(readers) < 4 {
					readers = append(readers, &reader{f: j.Follow(), open: map[uint64]bool{}})
				}
			case 7:
				if len(readers) > 0 {
					if _, err := readers[int(id)%len(readers)].take(int(step >> 4)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if j.bytes > j.opts.MaxBytes {
				t.Fatalf("%d bytes kept", j.bytes)
			}
		}
		j.Close()
		for _, r := range readers {
			if ended, err := r.take(1 << 16); err != nil || !ended {
				t.Fatalf("to the end: %v, %v", ended, err)
			}
			if len(r.open) != len(running) || r.lines > written {
				t.Errorf("%d activities open, want %d; %d lines taken or missed of %d", len(r.open), len(running), r.lines, written)
			}
		}
	})
}

// BenchmarkFlood is a log that one follower takes as fast as it comes.
func BenchmarkFlood(b *testing.B) {
	j := New(Options{})
	f := j.Follow()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := f.Next(context.Background()); err != nil {
				return
			}
		}
	}()
	m := daemon.LogLine(1, "a line of a log, of the usual length, more or less, as compilers write them")
	b.ReportAllocs()
	for b.Loop() {
		if err := j.Append(context.Background(), m); err != nil {
			b.Fatal(err)
		}
	}
	j.Close()
	<-done
}
