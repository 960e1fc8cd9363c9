// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var anyLinux = Request{Class: NewClass("x86_64-linux", nil, nil)}

// acquired is the outcome of an Acquire in the background.
type acquired struct {
	lease *Lease
	err   error
}

// acquire asks for a slot in the background and records what the request is told.
func acquire(ctx context.Context, l *Local, r Request) (<-chan acquired, *[]string) {
	out := make(chan acquired, 1)
	told := new([]string)
	go func() {
		lease, err := l.Acquire(ctx, r, func(w Waiting) { *told = append(*told, w.String()) })
		out <- acquired{lease, err}
	}()
	return out, told
}

// got returns an outcome that must be there, or fails.
func got(t *testing.T, from <-chan acquired) *Lease {
	t.Helper()
	synctest.Wait()
	select {
	case a := <-from:
		if a.err != nil {
			t.Fatal(a.err)
		}
		return a.lease
	default:
		t.Fatal("still waiting")
		return nil
	}
}

func waits(t *testing.T, from <-chan acquired) {
	t.Helper()
	synctest.Wait()
	select {
	case a := <-from:
		t.Fatalf("did not wait: %+v", a)
	default:
	}
}

func TestAcquireAtOnce(t *testing.T) {
	t.Parallel()
	l := NewLocal(LocalOptions{})
	l.Update([]Builder{linux("a")})
	lease, err := l.Acquire(t.Context(), anyLinux, func(Waiting) { t.Error("told to wait") })
	if err != nil || lease.Builder != "a" {
		t.Fatalf("Acquire = %+v, %v", lease, err)
	}
	lease.Release()
}

func TestQueueIsServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{})
		l.Update([]Builder{linux("a", slots(1))})
		first, _ := acquire(t.Context(), l, anyLinux)
		lease := got(t, first)
		second, told := acquire(t.Context(), l, anyLinux)
		waits(t, second)
		third, toldThird := acquire(t.Context(), l, anyLinux)
		waits(t, third)

		lease.Release()
		lease.Release() // a second time: no slot appears from nowhere
		next := got(t, second)
		waits(t, third)
		next.Release()
		got(t, third).Release()

		if want := []string{"waiting for an x86_64-linux builder: 1/1 slots busy"}; !slices.Equal(*told, want) {
			t.Errorf("the second was told %q, want %q", *told, want)
		}
		if want := []string{"waiting for an x86_64-linux builder: 1 ahead, 1/1 slots busy"}; !slices.Equal(*toldThird, want) {
			t.Errorf("the third was told %q, want %q", *toldThird, want)
		}
	})
}

func TestRunnableDoesNotWaitBehindOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{})
		l.Update([]Builder{linux("a"), {ID: "d", Systems: []string{"aarch64-darwin"}, Slots: 1, Down: "unreachable"}})
		mac, _ := acquire(t.Context(), l, Request{Class: NewClass("aarch64-darwin", nil, nil)})
		waits(t, mac)
		other, _ := acquire(t.Context(), l, anyLinux)
		got(t, other).Release()
		l.Update([]Builder{{ID: "d", Systems: []string{"aarch64-darwin"}, Slots: 1}})
		got(t, mac).Release()
	})
}

func TestUpdateWakes(t *testing.T) {
	tests := map[string]struct{ before, after []Builder }{
		"a builder appears":     {nil, []Builder{linux("a")}},
		"a builder recovers":    {[]Builder{linux("a", down)}, []Builder{linux("a")}},
		"a cordon is lifted":    {[]Builder{linux("a", cordon(Cordon{}))}, []Builder{linux("a")}},
		"a builder gets slots":  {[]Builder{linux("a", slots(0))}, []Builder{linux("a")}},
		"a builder gets a kind": {[]Builder{{ID: "a", Slots: 1}}, []Builder{linux("a")}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := NewLocal(LocalOptions{})
				l.Update(tc.before)
				waiting, _ := acquire(t.Context(), l, anyLinux)
				waits(t, waiting)
				l.Update(tc.after)
				got(t, waiting).Release()
			})
		})
	}
}

func TestReasonsAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{})
		ctx, cancel := context.WithCancelCause(t.Context())
		waiting, told := acquire(ctx, l, anyLinux)
		waits(t, waiting)
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if len(*told) != 3 {
			t.Errorf("told %d times in 61 s, want at once and every 30 s: %q", len(*told), *told)
		}
		gone := errors.New("client gone")
		cancel(gone)
		synctest.Wait()
		if a := <-waiting; !errors.Is(a.err, gone) {
			t.Errorf("error = %v, want %v", a.err, gone)
		}
		// Nobody is left in the queue.
		l.Update([]Builder{linux("a", slots(1))})
		next, _ := acquire(t.Context(), l, anyLinux)
		got(t, next).Release()
	})
}

func TestCordonEndWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{Interval: time.Hour})
		l.Update([]Builder{
			linux("a", cordon(Cordon{Until: time.Now().Add(10 * time.Second)})),
			linux("b", cordon(Cordon{Until: time.Now().Add(5 * time.Second)})),
		})
		waiting, _ := acquire(t.Context(), l, anyLinux)
		waits(t, waiting)
		time.Sleep(5 * time.Second)
		if lease := got(t, waiting); lease.Builder != "b" {
			t.Errorf("builder %s, want b", lease.Builder)
		}
	})
}

func TestLeaseOutlivesItsBuilder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{})
		l.Update([]Builder{linux("a", slots(1))})
		first, _ := acquire(t.Context(), l, anyLinux)
		lease := got(t, first)
		l.Update(nil)
		l.Update([]Builder{linux("a", slots(1))})
		second, _ := acquire(t.Context(), l, anyLinux)
		waits(t, second)
		lease.Release()
		got(t, second).Release()
	})
}

func TestAcquireOfEndedContext(t *testing.T) {
	t.Parallel()
	l := NewLocal(LocalOptions{})
	l.Update([]Builder{linux("a", slots(1))})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Acquire(ctx, anyLinux, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want %v", err, context.Canceled)
	}
	lease, err := l.Acquire(t.Context(), anyLinux, nil)
	if err != nil {
		t.Fatal(err)
	}
	lease.Release()
}
