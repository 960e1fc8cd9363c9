// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

func openBulk(t *testing.T, f *Fleet) *Session {
	t.Helper()
	s, err := f.OpenBulk(t.Context(), "b/one")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTransfersHaveConnectionsOfTheirOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		defer open(t, f).Close()
		a, b := openBulk(t, f), openBulk(t, f)
		if s := f.Stats()[0]; s.Connections != 1 || s.BulkConnections != 2 || s.Transfers != 2 || s.BusySessions != 1 {
			t.Errorf("%+v, want one connection for builds and two for transfers", s)
		}
		a.Close()
		a.Close()
		b.Reuse()
		synctest.Wait()
		if s := f.Stats()[0]; s.BulkConnections != 2 || s.Transfers != 0 {
			t.Errorf("%+v, want the connections to be kept warm", s)
		}
		openBulk(t, f).Close()
		if dials, _ := m.counts(); dials != 3 {
			t.Errorf("%d connections were made, want a warm one to be used again", dials)
		}
		time.Sleep(warmAge + time.Second)
		synctest.Wait()
		if s := f.Stats()[0]; s.BulkConnections != 0 || s.Connections != 1 {
			t.Errorf("%+v, want no connection left for transfers", s)
		}
	})
}

func TestTransfersAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		n := &news{}
		f := New(Options{Dial: m.dial, OnChange: n.set, Transfers: 2, Logger: slog.New(slog.DiscardHandler)})
		t.Cleanup(f.Close)
		f.Update(document(endpoint("one")))
		first := openBulk(t, f)
		defer openBulk(t, f).Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := f.OpenBulk(ctx, "b/one"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v, want a third transfer to wait", err)
		}
		time.AfterFunc(time.Second, first.Close)
		began := time.Now()
		defer openBulk(t, f).Close()
		if took := time.Since(began); took != time.Second {
			t.Errorf("the third came after %v, want it when the first ended", took)
		}
		time.AfterFunc(time.Second, func() { f.Update(document()) })
		_, err := f.OpenBulk(t.Context(), "b/one")
		lost(t, err, errGone)
	})
}

// A builder that admits no more connections gets its transfers beside the builds.
func TestTransferWithoutAConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, n := newFleet(t, m)
		open(t, f).Reuse()
		m.set(&sshconn.Error{Kind: sshconn.KindTurnedAway})
		for range 2 {
			s := openBulk(t, f)
			if s.link.bulk {
				t.Error("it has a connection of its own")
			}
			s.Reuse()
			if stats := f.Stats()[0]; stats.Transfers != 0 || stats.BusySessions != 0 {
				t.Errorf("%+v, want nothing in use", stats)
			}
		}
		if dials, _ := m.counts(); dials != 2+dropRetries {
			t.Errorf("%d connections were tried, want the second transfer to try none", dials)
		}
		if down := n.down(t, "b/one"); down != "" {
			t.Errorf("the builder is %q", down)
		}
		m.set(nil)
		time.Sleep(bulkRest)
		s := openBulk(t, f)
		defer s.Close()
		if !s.link.bulk {
			t.Error("it has no connection of its own though there are some again")
		}
	})
}

func TestTransferToABuilderThatIsDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		m.set(errCut)
		for range 2 {
			_, err := f.OpenBulk(t.Context(), "b/one")
			lost(t, err, errCut)
		}
		_, err := f.OpenBulk(t.Context(), "b/none")
		var l *LostError
		if !errors.As(err, &l) {
			t.Errorf("error = %v", err)
		}
		if s := f.Stats()[0]; s.Transfers != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The loss of a transfer's connection alone is no sign that the builder is down.
func TestLostTransfer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, n := newFleet(t, m)
		defer open(t, f).Close()
		s := openBulk(t, f)
		defer s.Close()
		openBulk(t, f).Close() // and one that is warm
		m.mu.Lock()
		conns := m.conns[1:]
		m.mu.Unlock()
		for _, w := range conns {
			w.end(errCut)
		}
		synctest.Wait()
		_, err := s.QueryValidPaths(t.Context(), []string{pathA}, false, nil)
		lost(t, err, nil)
		if down := n.down(t, "b/one"); down != "" || f.Stats()[0].BulkConnections != 0 {
			t.Errorf("the builder is %q, %+v", down, f.Stats()[0])
		}
		s.Close()
		openBulk(t, f).Close()
	})
}

// Who waits no longer leaves the connection to the next transfer.
func TestImpatientTransfer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		defer open(t, f).Close()
		m.mu.Lock()
		m.dialing = time.Second
		m.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := f.OpenBulk(ctx, "b/one"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		openBulk(t, f).Close()
		if dials, _ := m.counts(); dials != 2 {
			t.Errorf("%d connections were made, want 2", dials)
		}
	})
}

// A warm connection on which no session can be started is replaced.
func TestWarmConnectionThatIsBroken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		openBulk(t, f).Close()
		m.mu.Lock()
		m.mute = true // the first connection
		m.mu.Unlock()
		s := openBulk(t, f)
		defer s.Close()
		if dials, open := m.counts(); dials != 2 || open != 1 {
			t.Errorf("%d connections were made, %d are open, want the second", dials, open)
		}
	})
}
