// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestOrphanKeepsItsSlotForTheGraceTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{Interval: time.Hour})
		l.Update([]Builder{linux("a", slots(1)), linux("b", down)})
		lost, _ := acquire(t.Context(), l, anyLinux)
		lease := got(t, lost)
		lease.Orphan(2 * time.Minute)
		lease.Release() // the build's end, noticed twice

		next, told := acquire(t.Context(), l, anyLinux)
		waits(t, next)
		want := "waiting for an x86_64-linux builder: 1/1 slots busy, 1 of them perhaps still running a lost build, b unreachable"
		if len(*told) != 1 || !strings.HasPrefix((*told)[0], want) {
			t.Errorf("told %q, want %q", *told, want)
		}
		// The builder is away for a moment: that frees nothing.
		l.Update(nil)
		l.Update([]Builder{linux("a", slots(1))})
		if b := l.Snapshot().Builders[0]; b.Running != 1 || b.Orphaned != 1 {
			t.Errorf("%d running, %d of them orphans, want 1 and 1", b.Running, b.Orphaned)
		}
		time.Sleep(2*time.Minute - time.Second)
		waits(t, next)
		time.Sleep(time.Second)
		got(t, next).Release()
		if b := l.Snapshot().Builders[0]; b.Running != 0 || b.Orphaned != 0 {
			t.Errorf("%d running, %d of them orphans, want none", b.Running, b.Orphaned)
		}
	})
}

func TestOrphanWithoutGraceIsReleased(t *testing.T) {
	t.Parallel()
	l := NewLocal(LocalOptions{})
	l.Update([]Builder{linux("a", slots(1))})
	for range 2 {
		lease, err := l.Acquire(t.Context(), anyLinux, func(Waiting) { t.Error("waits") })
		if err != nil {
			t.Fatal(err)
		}
		lease.Orphan(0)
	}
}

func TestWaitLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{WaitLimit: 10 * time.Minute})
		l.Update([]Builder{linux("a", slots(1))})
		first, _ := acquire(t.Context(), l, anyLinux)
		lease := got(t, first)
		second, told := acquire(t.Context(), l, anyLinux)
		time.Sleep(time.Minute)
		third, _ := acquire(t.Context(), l, anyLinux)
		time.Sleep(9 * time.Minute)
		synctest.Wait()

		var limit *WaitLimitError
		if a := <-second; !errors.As(a.err, &limit) {
			t.Fatalf("the second ended with %+v, want a *WaitLimitError", a)
		}
		if limit.Limit != 10*time.Minute || limit.Waiting.Busy != 1 || time.Since(limit.Waiting.Since) != limit.Limit {
			t.Errorf("error is %+v", limit)
		}
		if len(*told) < 20 {
			t.Errorf("told %d times in ten minutes", len(*told))
		}
		// It is no longer in the way, and a slot in time counts.
		waits(t, third)
		lease.Release()
		got(t, third).Release()
	})
}

func TestWaitLimitCountsEarlierRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{WaitLimit: 10 * time.Minute})
		l.Update([]Builder{linux("a", down)})
		r := anyLinux
		r.Waited = 9 * time.Minute
		began := time.Now()
		waiting, _ := acquire(t.Context(), l, r)
		var limit *WaitLimitError
		if a := <-waiting; !errors.As(a.err, &limit) || time.Since(began) != time.Minute {
			t.Errorf("it ended with %+v after %v, want a *WaitLimitError after the minute that was left", a, time.Since(began))
		}
	})
}

// TestSlotAtTheLimitIsTaken has slot and limit come at the same moment.
func TestSlotAtTheLimitIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{WaitLimit: time.Minute})
		for range 50 {
			l.Update([]Builder{linux("a", slots(1), cordon(Cordon{Until: time.Now().Add(time.Minute)}))})
			waiting, _ := acquire(t.Context(), l, anyLinux)
			time.Sleep(time.Minute)
			synctest.Wait()
			a := <-waiting
			var limit *WaitLimitError
			if a.err != nil && !errors.As(a.err, &limit) {
				t.Fatal(a.err)
			}
			if a.err == nil {
				a.lease.Release()
			}
		}
		if b := l.Snapshot().Builders[0]; b.Running != 0 || l.Waiting() != 0 {
			t.Errorf("%d slots taken, %d waiting", b.Running, l.Waiting())
		}
	})
}

func TestLocalProspect(t *testing.T) {
	t.Parallel()
	l := NewLocal(LocalOptions{})
	if id, ok := l.Prospect(anyLinux); ok {
		t.Errorf("prospect %q without builders", id)
	}
	l.Update([]Builder{linux("a", slots(1)), linux("b", slots(1)), linux("c", down)})
	r := anyLinux
	r.Present = map[string]int{"a": 1, "c": 2}
	for range 2 { // the second time the builder's slot is taken
		if id, ok := l.Prospect(r); id != "a" || !ok {
			t.Errorf("prospect %q, want a", id)
		}
		if _, err := l.Acquire(t.Context(), r, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.Avoid = []string{"a"}
	if id, ok := l.Prospect(r); id != "b" || !ok {
		t.Errorf("prospect %q of a build that was on a, want b", id)
	}
	if n := l.Waiting(); n != 0 {
		t.Errorf("%d wait", n)
	}
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{})
		l.Update([]Builder{linux("a", slots(1))})
		first, _ := acquire(t.Context(), l, anyLinux)
		lease := got(t, first)
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		for _, label := range []string{"hello", "world"} {
			r := Request{Class: anyLinux.Class, Client: "anna", Label: label}
			acquire(ctx, l, r)
			synctest.Wait()
		}
		time.Sleep(time.Second)
		waiting := func(ahead int) Waiting {
			return Waiting{Class: anyLinux.Class, Ahead: ahead, Busy: 1, Slots: 1, Since: began}
		}
		want := Status{
			Builders: []Builder{linux("a", slots(1), running(1))},
			Waiting:  2,
			Queue:    []Queued{{"hello", "anna", waiting(0)}, {"world", "anna", waiting(1)}},
			Now:      time.Now(),
		}
		if diff := cmp.Diff(want, l.Status()); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		cancel()
		synctest.Wait()
		lease.Release()
	})
}

func TestStatusListsThoseThatWaitLongest(t *testing.T) {
	t.Parallel()
	l := NewLocal(LocalOptions{})
	kinds := []Class{anyLinux.Class, Need("aarch64-darwin", nil)}
	for i := range maxListed + 500 {
		l.ask(Request{Class: kinds[i%2], Label: string(rune(i))})
	}
	status := l.Status()
	if status.Waiting != maxListed+500 || len(status.Queue) != maxListed {
		t.Fatalf("%d of %d listed", len(status.Queue), status.Waiting)
	}
	if !slices.IsSortedFunc(status.Queue, func(a, b Queued) int { return strings.Compare(a.Label, b.Label) }) {
		t.Error("the queue is not in order of arrival")
	}
}
