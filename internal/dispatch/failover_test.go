// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// on returns a hook that runs f before the operation is carried out.
func on(op daemon.Operation, f func(context.Context) error) func(context.Context, daemontest.Call) error {
	return func(ctx context.Context, c daemontest.Call) error {
		if c.Request.Operation() == op {
			return f(ctx)
		}
		return nil
	}
}

func TestLostBuilderIsReplaced(t *testing.T) {
	tests := map[string]struct {
		op   daemon.Operation
		lose func(m *machine) func(context.Context) error
	}{
		"asked what it lacks, hangs up":   {daemon.OpQueryValidPaths, func(*machine) func(context.Context) error { return daemontest.HangUp }},
		"asked what it lacks, goes down":  {daemon.OpQueryValidPaths, goDown},
		"asked what it lacks, falls mute": {daemon.OpQueryValidPaths, func(*machine) func(context.Context) error { return daemontest.Silent }},
		"uploading, goes down":            {daemon.OpAddMultipleToStore, goDown},
		"uploading, falls mute":           {daemon.OpAddMultipleToStore, func(*machine) func(context.Context) error { return daemontest.Silent }},
		"building, hangs up":              {daemon.OpBuildDerivation, func(*machine) func(context.Context) error { return daemontest.HangUp }},
		"building, goes down":             {daemon.OpBuildDerivation, goDown},
		"answering, goes down":            {daemon.OpQueryPathInfo, goDown},
		"returning outputs, goes down":    {daemon.OpNARFromPath, goDown},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var bad *machine
				bad = newMachine(t, "bad", daemontest.Options{Before: on(tc.op, func(ctx context.Context) error {
					return tc.lose(bad)(ctx)
				})}, slots(8))
				good := newMachine(t, "good", daemontest.Options{})
				r := newRig(t, rigOptions{builders: []*machine{bad, good}})
				c := r.connect(1, "x86_64-linux.0")
				a := newFile("a", "A")
				c.send(a)
				d := newDerivation("out", a)
				if got := c.mustBuild(d)["out"]; !strings.Contains(got, d.path) {
					t.Errorf("output = %q", got)
				}
				if got := good.Builds(); !slices.Equal(got, []string{d.path}) {
					t.Errorf("the other builder built %v", got)
				}
				lines := withoutReminders(c.said.lines())
				if len(lines) != 1 || !strings.HasPrefix(lines[0], "builder b/bad lost (") || !strings.HasSuffix(lines[0], "): rebuilding on b/good") {
					t.Errorf("lines = %q", lines)
				}
			})
		})
	}
}

func goDown(m *machine) func(context.Context) error {
	return func(context.Context) error {
		go m.down()
		return daemontest.ErrHangUp
	}
}

func TestOpenActivitiesOfALostBuilderEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad *machine
		bad = newMachine(t, "bad", daemontest.Options{Build: func(ctx context.Context, b *daemontest.Build) *daemon.BuildResult {
			b.Send(daemon.StartActivity{ID: 77, Type: daemon.ActivityBuild})
			b.Send(daemon.StartActivity{ID: 78})
			b.Send(daemon.StopActivity{ID: 78})
			bad.down()
			return nil
		}}, slots(8))
		r := newRig(t, rigOptions{builders: []*machine{bad, newMachine(t, "good", daemontest.Options{})}})
		c := r.connect(1, "x86_64-linux.0")
		c.mustBuild(newDerivation("out"))
		balance := map[uint64]int{}
		for _, m := range c.said.list {
			switch m := m.(type) {
			case daemon.StartActivity:
				balance[m.ID]++
			case daemon.StopActivity:
				balance[m.ID]--
			}
		}
		for id, n := range balance {
			if n != 0 {
				t.Errorf("activity %d was begun %d times more than ended", id, n)
			}
		}
		if _, ok := balance[77]; !ok {
			t.Error("activity 77 was not passed on")
		}
	})
}

func TestTheOnlyBuilderIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m *machine
		builds := 0
		m = newMachine(t, "one", daemontest.Options{Build: func(ctx context.Context, b *daemontest.Build) *daemon.BuildResult {
			if builds++; builds == 1 {
				m.down()
				time.AfterFunc(time.Minute, m.up)
				<-ctx.Done()
			}
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		c.mustBuild(newDerivation("out"))
		lines := c.said.lines()
		last := len(lines) - 1
		if last < 2 || !strings.HasPrefix(lines[0], "builder b/one lost (") || !strings.HasSuffix(lines[0], "): the build waits") ||
			!strings.HasPrefix(lines[1], "waiting for an x86_64-linux builder: b/one unreachable since") ||
			!strings.HasSuffix(lines[last], "rebuilding on b/one") {
			t.Errorf("lines = %q", lines)
		}
	})
}

// The limit of waiting is the build's: one that loses its builders does not wait anew.
func TestWaitsBetweenLossesCountTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m *machine
		m = newMachine(t, "one", daemontest.Options{Build: func(ctx context.Context, _ *daemontest.Build) *daemon.BuildResult {
			m.down()
			time.AfterFunc(time.Minute, m.up)
			<-ctx.Done()
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}, waitLimit: 150 * time.Second})
		c := r.connect(1, "x86_64-linux.0")
		began := time.Now()
		_, err := c.build(newDerivation("out"))
		if err == nil || !strings.Contains(err.Error(), "the limit set by --wait-timeout") || time.Since(began) > 4*time.Minute {
			t.Errorf("it ended after %v with %v", time.Since(began), err)
		}
	})
}

func TestBuildThatKeepsLosingBuildersGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var machines []*machine
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			machines = append(machines, newMachine(t, name, daemontest.Options{Before: on(daemon.OpBuildDerivation, daemontest.HangUp)}))
		}
		r := newRig(t, rigOptions{builders: machines, limits: Limits{Losses: 3}})
		c := r.connect(1, "x86_64-linux.0")
		_, err := c.build(newDerivation("out"))
		if err == nil || !strings.Contains(err.Error(), "gave up after 3 tries") || strings.Count(err.Error(), "builder b/") != 3 {
			t.Errorf("error = %v", err)
		}
		r.noneLeft()
	})
}

func TestRequestErrorsAreNotRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newMachine(t, "one", daemontest.Options{Before: on(daemon.OpBuildDerivation, daemontest.Refuse("no"))}, slots(8))
		two := newMachine(t, "two", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{one, two}})
		c := r.connect(1, "x86_64-linux.0")
		if _, err := c.build(newDerivation("out")); err == nil {
			t.Error("built")
		}
		if got := two.Builds(); len(got) != 0 {
			t.Errorf("the other builder built %v", got)
		}
	})
}

func TestSetbacksAreWeighedByWhatTheySay(t *testing.T) {
	t.Parallel()
	lostWhile := func(phase Phase) setback { return setback{lost: true, phase: phase, err: errors.New("lost")} }
	failed := setback{phase: PhaseBuilding, err: errors.New("no space left on device")}
	tests := map[string]struct {
		setbacks []setback
		want     bool
	}{
		"one less than may be lost":            {slices.Repeat([]setback{lostWhile(PhaseBuilding)}, 2), false},
		"as many lost":                         {slices.Repeat([]setback{lostWhile(PhaseReturning)}, 3), true},
		"many that had not begun":              {slices.Repeat([]setback{lostWhile(PhaseUploading)}, 11), false},
		"without end":                          {slices.Repeat([]setback{lostWhile(PhaseQueued)}, 12), true},
		"failures do not count as losses":      {append(slices.Repeat([]setback{failed}, 3), lostWhile(PhaseBuilding), lostWhile(PhaseBuilding)), false},
		"but are bounded by a limit of theirs": {slices.Repeat([]setback{failed}, 4), true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := &job{server: &Server{limits: Limits{Losses: 3}}, setbacks: tc.setbacks}
			_, err := j.giveUp(&placement{}, tc.setbacks[len(tc.setbacks)-1])
			if got := err != nil; got != tc.want {
				t.Errorf("gives up: %v (%v), want %v", got, err, tc.want)
			}
		})
	}
}
