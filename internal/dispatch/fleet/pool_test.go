// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// build lets a session build something.
func build(t *testing.T, s *Session) {
	t.Helper()
	if _, err := s.BuildOutputs(t.Context(), drvC, &daemon.BasicDerivation{}, nil, daemon.Outputs{}); err != nil {
		t.Fatal(err)
	}
}

func TestReuseSavesSessions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		for range reuseBuilds {
			s := open(t, f)
			build(t, s)
			s.Reuse()
		}
		synctest.Wait()
		if got := m.Sessions(); got != 2 {
			t.Errorf("%d sessions for %d builds, want 1 and a ready one after its end", got, reuseBuilds)
		}
	})
}

func TestWhatIsNotReused(t *testing.T) {
	tests := map[string]struct {
		daemon daemontest.Options
		use    func(t *testing.T, m *machine, s *Session)
	}{
		"a session that has failed": {
			daemon: daemontest.Options{Before: func(_ context.Context, c daemontest.Call) error {
				if c.Session == 1 {
					return daemontest.Refuse("no")(t.Context())
				}
				return nil
			}},
			use: func(t *testing.T, _ *machine, s *Session) {
				if _, _, err := s.QueryPathInfo(t.Context(), pathA); err == nil {
					t.Error("no error")
				}
			},
		},
		"a session whose answers were not all read": {
			daemon: daemontest.Options{Build: func(context.Context, *daemontest.Build) *daemon.BuildResult {
				return &daemon.BuildResult{Status: daemon.StatusPermanentFailure}
			}},
			use: func(t *testing.T, _ *machine, s *Session) {
				result, err := s.BuildOutputs(t.Context(), drvC, &daemon.BasicDerivation{}, nil, daemon.Outputs{Paths: []string{pathC}})
				if err != nil || result.Status != daemon.StatusPermanentFailure {
					t.Errorf("BuildOutputs = %+v, %v", result, err)
				}
			},
		},
		"an old session": {
			use: func(*testing.T, *machine, *Session) { time.Sleep(reuseAge) },
		},
		"a session that has ended": {
			use: func(_ *testing.T, m *machine, _ *Session) {
				m.endStreams()
				synctest.Wait()
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := newMachine(t, tc.daemon)
				m.lasting = true
				f, _ := newFleet(t, m)
				s := open(t, f)
				tc.use(t, m, s)
				s.Reuse()
				synctest.Wait()
				other := open(t, f)
				defer other.Close()
				if other == s {
					t.Error("the session was used again")
				}
			})
		})
	}
}

// A session that ends while it waits for work is not handed out.
func TestIdleSessionThatEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.lasting = true
		f, _ := newFleet(t, m)
		open(t, f).Reuse()
		m.endStreams()
		synctest.Wait()
		s := open(t, f)
		defer s.Close()
		build(t, s)
	})
}

func TestSessionsAreKeptReady(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		f.Update(document(endpoint("one", func(e *inventory.Endpoint) { e.Slots = 3 })))
		var sessions []*Session
		for range 5 {
			sessions = append(sessions, open(t, f))
		}
		if s := f.Stats()[0]; s.BusySessions != 5 || s.IdleSessions != 0 {
			t.Errorf("%+v, want 5 in use and none ready: more would take the builds' processors", s)
		}
		for _, s := range sessions {
			s.Close()
		}
		synctest.Wait()
		if s := f.Stats()[0]; s.BusySessions != 0 || s.IdleSessions != 3 {
			t.Errorf("%+v, want one ready for every slot", s)
		}
		before := m.Sessions()
		for range 3 {
			open(t, f).Close()
			synctest.Wait()
		}
		if got := m.Sessions() - before; got != 3 {
			t.Errorf("%d sessions were opened for 3 builds one after the other, want 3", got)
		}
		time.Sleep(2*peakWindow + idleAge)
		synctest.Wait()
		if s := f.Stats()[0]; s.IdleSessions != 0 {
			t.Errorf("%d sessions are ready that nobody has needed for long", s.IdleSessions)
		}
	})
}

// Sessions are made ready one at a time, on connections that there are.
func TestReadySessionsDoNotCrowd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.maxSessions = 2
		f, _ := newFleet(t, m)
		f.Update(document(endpoint("one", func(e *inventory.Endpoint) { e.Slots = 8 })))
		var sessions []*Session
		for range 6 {
			sessions = append(sessions, open(t, f))
		}
		for _, s := range sessions {
			s.Close()
		}
		synctest.Wait()
		s := f.Stats()[0]
		if dials, _ := m.counts(); dials != 3 || s.SessionLimit != 2 || s.IdleSessions > 2 {
			t.Errorf("%d connections, %+v, want 3 and no more sessions ready than one connection admits", dials, s)
		}
	})
}

// Who needs a session takes the one that is being made ready.
func TestOpenWaitsForTheComingSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.starting = time.Second
		f, _ := newFleet(t, m)
		open(t, f).Close() // and another is being started
		began := time.Now()
		time.Sleep(time.Second / 2)
		defer open(t, f).Close()
		took := time.Since(began)
		synctest.Wait()
		if took != time.Second || m.Sessions() != 2 {
			t.Errorf("it took %v and %d sessions, want the second that was begun", took, m.Sessions())
		}
	})
}

// Refusals while a session is still ending say nothing about how many there may be.
func TestRefusalWhileASessionEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, _ := newFleet(t, m)
		a := open(t, f)
		defer open(t, f).Close()
		a.Close()
		synctest.Wait()
		m.maxSessions = 2
		defer open(t, f).Close() // the one made ready
		defer open(t, f).Close()
		if s := f.Stats()[0]; s.SessionLimit != sessionsPerLink || s.Connections != 2 {
			t.Errorf("%+v, want no limit learned and a second connection", s)
		}
		time.Sleep(endingTime)
		defer open(t, f).Close()
		defer open(t, f).Close()
		if s := f.Stats()[0]; s.SessionLimit != 2 {
			t.Errorf("%+v, want the limit of 2 to be learned", s)
		}
		time.Sleep(linkAge)
		if s := f.Stats()[0]; s.SessionLimit != sessionsPerLink {
			t.Errorf("%+v, want the limit to be forgotten", s)
		}
	})
}
