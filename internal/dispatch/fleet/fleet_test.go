// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// bubble runs a test on fake time. Its cleanups end all goroutines.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestOneConnectionForManySessions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, n := newFleet(t, m)
		if down := n.down(t, "b/one"); down != "" {
			t.Errorf("a builder nobody has tried is %q, want healthy", down)
		}
		if dials, _ := m.counts(); dials != 0 {
			t.Errorf("%d dials before the first use", dials)
		}
		var sessions []*Session
		for range sessionsPerLink + 1 {
			sessions = append(sessions, open(t, f))
		}
		if dials, _ := m.counts(); dials != 2 {
			t.Errorf("%d connections for %d sessions, want 2", dials, len(sessions))
		}
		for _, s := range sessions {
			s.Close()
			s.Close()
		}
		for range sessionsPerLink {
			defer open(t, f).Close()
		}
		if dials, _ := m.counts(); dials != 2 {
			t.Errorf("%d connections, want the 2 to be used again", dials)
		}
	})
}

func TestConcurrentOpensShareOneDial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		impatient, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.Open(impatient, "b/one"); !errors.Is(err, context.Canceled) {
			t.Errorf("error = %v, want %v", err, context.Canceled)
		}
		results := make(chan error)
		for range 5 {
			go func() {
				s, err := f.Open(t.Context(), "b/one")
				if err == nil {
					defer s.Close()
				}
				results <- err
			}()
		}
		for range 5 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		if dials, _ := m.counts(); dials != 1 {
			t.Errorf("%d dials, want 1", dials)
		}
	})
}

func TestSessionLimitIsLearned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.maxSessions = 3
		f, n := newFleet(t, m)
		for range 7 {
			defer open(t, f).Close()
		}
		if dials, _ := m.counts(); dials != 3 {
			t.Errorf("%d connections for 7 sessions of 3 each, want 3", dials)
		}
		if down := n.down(t, "b/one"); down != "" {
			t.Errorf("the builder is %q, want healthy", down)
		}
	})
}

func TestUnreachableBuilderIsDownUntilItAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		refused := &sshconn.Error{Kind: sshconn.KindRefused}
		m.set(refused)
		f, n := newFleet(t, m)
		_, err := f.Open(t.Context(), "b/one")
		lost(t, err, refused)
		synctest.Wait()
		if down := n.down(t, "b/one"); down != "refuses connections" {
			t.Errorf("the builder is %q", down)
		}
		_, err = f.Open(t.Context(), "b/one")
		lost(t, err, refused)
		time.Sleep(10 * time.Minute)
		dials, _ := m.counts()
		if dials < 20 || dials > 60 {
			t.Errorf("%d dials in 10 minutes, want one every 30 s or so", dials)
		}
		m.set(nil)
		time.Sleep(maxPause + maxPause/2)
		synctest.Wait()
		if down := n.down(t, "b/one"); down != "" {
			t.Errorf("the builder is %q though it answers", down)
		}
		open(t, f).Close()
	})
}

func TestLostConnectionMarksTheBuilderAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, n := newFleet(t, m)
		s := open(t, f)
		defer s.Close()
		m.set(errCut)
		m.cut()
		synctest.Wait()
		if down := n.down(t, "b/one"); down != "unreachable" {
			t.Errorf("the builder is %q", down)
		}
		_, _, err := s.QueryPathInfo(t.Context(), "/nix/store/00000000000000000000000000000000-a")
		lost(t, err, nil)
		m.set(nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if down := n.down(t, "b/one"); down != "" {
			t.Errorf("the builder is %q after a second, want it tried again at once", down)
		}
	})
}

func TestMuteConnectionIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, n := newFleet(t, m)
		open(t, f).Close()
		m.mu.Lock()
		m.mute = true
		m.mu.Unlock()
		began := time.Now()
		_, err := f.Open(t.Context(), "b/one")
		lost(t, err, errSilent)
		if took := time.Since(began); took != 15*time.Second {
			t.Errorf("took %v, want the limit", took)
		}
		if down := n.down(t, "b/one"); down != "does not answer" {
			t.Errorf("the builder is %q", down)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		open(t, f).Close()
		if dials, open := m.counts(); dials != 2 || open != 1 {
			t.Errorf("%d dials, %d connections open, want a second one in place of the first", dials, open)
		}
	})
}

func TestBuildersFileIsObeyed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, n := newFleet(t, m)
		unhealthy := func(e *inventory.Endpoint) {
			e.State, e.Reason = inventory.StateUnhealthy, "UserNotTrusted"
		}
		f.Update(document(endpoint("one", unhealthy)))
		if down := n.down(t, "b/one"); down != "user not trusted" {
			t.Errorf("the builder is %q", down)
		}
		m.set(errCut)
		if _, err := f.Open(t.Context(), "b/one"); err == nil {
			t.Error("opened")
		}
		before, _ := m.counts()
		time.Sleep(time.Hour)
		if after, _ := m.counts(); after != before {
			t.Errorf("%d dials of a builder that is listed as down", after-before)
		}
		m.set(nil)
		f.Update(document(endpoint("one")))
		time.Sleep(time.Second)
		synctest.Wait()
		if down := n.down(t, "b/one"); down != "" {
			t.Errorf("the builder is %q, want it tried at once", down)
		}
	})
}

func TestCordonIsPassedOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, _ := newFleet(t, newMachine(t, daemontest.Options{}))
		until := time.Now().Add(time.Hour)
		f.Update(document(endpoint("one", func(e *inventory.Endpoint) {
			e.Cordon = &inventory.Cordon{Reason: "disk", Until: &until}
		})))
		b := f.Builders()[0]
		if b.Cordon == nil || b.Cordon.Reason != "disk" || !b.Cordon.Until.Equal(until) {
			t.Errorf("cordon = %+v", b.Cordon)
		}
	})
}

func TestOnlyTrustedBuildersAreUsed(t *testing.T) {
	tests := map[string]struct {
		opts daemontest.Options
		want string
	}{
		"trusted, says so":        {daemontest.Options{Trust: daemon.Trusted}, ""},
		"trusted, does not say":   {daemontest.Options{Trust: daemon.Trusted, Version: daemon.OldestProtocol}, ""},
		"untrusted, says so":      {daemontest.Options{Trust: daemon.NotTrusted}, "does not trust its user"},
		"untrusted, does not say": {daemontest.Options{Trust: daemon.NotTrusted, Version: daemon.OldestProtocol}, "does not trust its user"},
		"too old":                 {daemontest.Options{Trust: daemon.Trusted, Version: 0x115}, "has a Nix that is too old"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := newMachine(t, tc.opts)
				f, n := newFleet(t, m)
				s, err := f.Open(t.Context(), "b/one")
				synctest.Wait()
				if down := n.down(t, "b/one"); down != tc.want {
					t.Errorf("the builder is %q, want %q (%v)", down, tc.want, err)
				}
				if (err == nil) != (tc.want == "") {
					t.Errorf("error = %v", err)
				}
				if err == nil {
					s.Close()
				}
				if slices.Contains(m.Operations(), daemon.OpBuildDerivation) {
					t.Error("something was built")
				}
			})
		})
	}
}

func TestIdleSessions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		s := open(t, f)
		s.Reuse()
		if again := open(t, f); again != s {
			t.Error("an idle session was not used again")
		}
		s.Reuse()
		time.Sleep(idleAge + time.Second)
		synctest.Wait()
		if again := open(t, f); again == s {
			t.Error("an old session was used again")
		} else {
			again.Close()
		}
		synctest.Wait()
		if got := m.Sessions(); got != 3 {
			t.Errorf("%d sessions, want 3: the last is ready for the next build", got)
		}
		if _, open := m.counts(); open != 1 {
			t.Errorf("%d connections are open, want 1", open)
		}
		time.Sleep(idleAge + linkAge + time.Second)
		synctest.Wait()
		if _, open := m.counts(); open != 0 {
			t.Errorf("%d connections are open after a long time without use", open)
		}
		open(t, f).Close()
	})
}

func TestRemovedBuilder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		s := open(t, f)
		f.Update(document())
		_, err := f.Open(t.Context(), "b/one")
		lost(t, err, errGone)
		if _, err := s.QueryValidPaths(t.Context(), nil, false, nil); err != nil {
			t.Errorf("a session of a builder that was removed: %v, want it to go on", err)
		}
		s.Close()
		synctest.Wait()
		if _, open := m.counts(); open != 0 {
			t.Errorf("%d connections are open", open)
		}
	})
}

func TestChangedAccessMeansNewConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		open(t, f).Close()
		f.Update(document(endpoint("one", func(e *inventory.Endpoint) { e.Slots = 9 })))
		synctest.Wait()
		if _, open := m.counts(); open != 1 {
			t.Error("another number of slots has ended the connection")
		}
		f.Update(document(endpoint("one", func(e *inventory.Endpoint) { e.User = "other" })))
		synctest.Wait()
		if _, open := m.counts(); open != 0 {
			t.Error("another user has not ended the connection")
		}
		open(t, f).Close()
	})
}

func TestCloseEndsEverything(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		s := open(t, f)
		defer s.Close()
		open(t, f).Reuse()
		f.Close()
		if _, open := m.counts(); open != 0 {
			t.Errorf("%d connections are open after Close", open)
		}
		_, err := f.Open(t.Context(), "b/one")
		lost(t, err, errGone)
		f.Update(document(endpoint("one")))
		if len(f.Builders()) != 0 {
			t.Error("a closed fleet takes builders")
		}
	})
}

func TestWords(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]string{
		"":                 "unhealthy",
		"HostKeyChanged":   "host key changed",
		"NotAnSSHServer":   "not an SSH server",
		"SSHSilent":        "SSH silent",
		"lowercase":        "lowercase",
		"NotSSH":           "not SSH",
		"NoCredential":     "no credential",
		"SSHServerStopped": "SSH server stopped",
	} {
		if got := words(reason); got != want {
			t.Errorf("words(%q) = %q, want %q", reason, got, want)
		}
	}
}
