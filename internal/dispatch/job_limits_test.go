// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// talkative builds for so many steps of ten seconds, with a line of log after each.
func talkative(steps int) func(context.Context, *daemontest.Build) *daemon.BuildResult {
	return func(ctx context.Context, b *daemontest.Build) *daemon.BuildResult {
		for n := range steps {
			select {
			case <-time.After(10 * time.Second):
			case <-ctx.Done():
				return nil
			}
			b.Log(fmt.Sprintf("step %02d", n))
		}
		return nil
	}
}

func TestLimitsOfABuild(t *testing.T) {
	tests := map[string]struct {
		limits Limits
		steps  int
		status daemon.BuildStatus // Built if zero
		want   string
		took   time.Duration
	}{
		"no limits": {steps: 60, took: 10 * time.Minute},
		"within all limits": {
			limits: Limits{Silence: 11 * time.Second, Duration: 2 * time.Minute, Log: 48}, steps: 6, took: time.Minute,
		},
		"silence": {
			limits: Limits{Silence: 9 * time.Second}, steps: 6, status: daemon.StatusTimedOut, took: 9 * time.Second,
			want: "the build was silent for 9s on builder b/one: more than the dispatcher allows (--max-silent-time)",
		},
		"duration": {
			limits: Limits{Silence: time.Minute, Duration: 35 * time.Second}, steps: 6, status: daemon.StatusTimedOut, took: 35 * time.Second,
			want: "the build ran for 35s on builder b/one: more than the dispatcher allows (--build-timeout)",
		},
		"log": {
			limits: Limits{Log: 20}, steps: 6, status: daemon.StatusLogLimitExceeded, took: 30 * time.Second,
			want: "the build has written 24 bytes of log on builder b/one: more than the dispatcher allows (--max-log-size)",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one := newMachine(t, "one", daemontest.Options{Build: talkative(tc.steps)}, slots(8))
				two := newMachine(t, "two", daemontest.Options{})
				r := newRig(t, rigOptions{builders: []*machine{one, two}, limits: tc.limits})
				c := r.connect(1, "x86_64-linux.0")
				began := time.Now()
				result, err := c.build(newDerivation("out"))
				if err != nil {
					t.Fatal(err)
				}
				if result.Status != tc.status || result.ErrorMessage != tc.want {
					t.Errorf("result = %s: %s\nwant %s: %s", result.Status, result.ErrorMessage, tc.status, tc.want)
				}
				if took := time.Since(began); took < tc.took || took > tc.took+time.Second {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				if len(two.Builds()) != 0 {
					t.Error("tried on another builder")
				}
				c.Close()
				time.Sleep(lingering + time.Second)
				r.noneLeft()
			})
		})
	}
}

// What is not the build's own time does not count: the slot, the transfer, and outputs.
func TestTimeBeforeAndAfterTheBuildDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(context.Context) error { time.Sleep(20 * time.Second); return nil }
		m := newMachine(t, "one", daemontest.Options{Before: func(ctx context.Context, c daemontest.Call) error {
			switch c.Request.Operation() {
			case daemon.OpAddMultipleToStore:
				return slow(ctx)
			}
			return nil
		}})
		m.down()
		r := newRig(t, rigOptions{builders: []*machine{m}, limits: Limits{Silence: time.Second, Duration: 2 * time.Second}})
		time.AfterFunc(time.Minute, m.up)
		c := r.connect(1, "x86_64-linux.0")
		in := newFile("in", "I")
		c.upload(in)
		c.mustBuild(newDerivation("out", in))
	})
}

// A client that does not read for a while makes the builder wait, which is not the
// builder's silence.
func TestStalledTerminalIsNotTheBuildersSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := strings.Repeat("x", 64<<10)
		m := newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			for range 40 { // more than the journal holds
				if b.Log(line) != nil {
					return nil
				}
			}
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}, limits: Limits{Silence: 5 * time.Second}})
		c := r.connect(1, "x86_64-linux.0")
		d := newDerivation("out")
		lines, paused := 0, false
		result, err := c.BuildDerivation(t.Context(), d.path, &d.BasicDerivation, daemon.BuildNormal, func(m daemon.Message) error {
			if _, ok := m.(daemon.ActivityResult); ok {
				if lines++; !paused {
					paused = true
					time.Sleep(20 * time.Second)
				}
			}
			return nil
		})
		if err != nil || !result.Status.Success() || lines != 40 {
			t.Errorf("%+v, %v after %d lines", result, err, lines)
		}
	})
}

// A terminal that stands still for ever keeps neither slot nor memory.
func TestLogFloodWithAStalledTerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := strings.Repeat("x", 64<<10)
		m := newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			for range 1000 {
				b.Log(line)
			}
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		stalled, other := r.connect(1, "x86_64-linux.0"), r.connect(2, "x86_64-linux.1")
		d := newDerivation("out")
		resume, ended := make(chan struct{}), make(chan struct{})
		missing := ""
		go func() {
			defer close(ended)
			first := true
			result, err := stalled.BuildDerivation(t.Context(), d.path, &d.BasicDerivation, daemon.BuildNormal, func(m daemon.Message) error {
				if _, ok := m.(daemon.ActivityResult); ok && first {
					first = false
					<-resume
				}
				if next, ok := m.(daemon.Next); ok && strings.Contains(next.Text, "missing") {
					missing = next.Text
				}
				return nil
			})
			if err != nil || !result.Status.Success() {
				t.Errorf("after the stall: %+v, %v", result, err)
			}
		}()
		synctest.Wait()
		began := time.Now()
		other.mustBuild(newDerivation("other"))
		if took := time.Since(began); took > 2*time.Minute {
			t.Errorf("another build waited %v for the slot", took)
		}
		close(resume)
		<-ended
		if !strings.HasSuffix(missing, "lines of the log are missing here]\n") {
			t.Errorf("line about what is missing: %q", missing)
		}
		stalled.Close()
		synctest.Wait()
		if got := strings.Join(r.events.all(), "\n"); !strings.Contains(got, "missed ") {
			t.Errorf("events: %s", got)
		}
	})
}

// A slot whose builder fell silent stays taken for the grace time.
func TestOrphanGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		builds := 0
		one := newMachine(t, "one", daemontest.Options{Before: on(daemon.OpBuildDerivation, func(ctx context.Context) error {
			if builds++; builds == 1 {
				return daemontest.Silent(ctx)
			}
			return nil
		})})
		r := newRig(t, rigOptions{builders: []*machine{one}, limits: Limits{OrphanGrace: time.Minute}})
		c := r.connect(1, "x86_64-linux.0")
		began := time.Now()
		built := c.inBackground(t.Context(), newDerivation("out"))
		time.Sleep(time.Second)
		one.lose(syscall.ETIMEDOUT)
		if got := <-built; got.err != nil {
			t.Fatal(got.err)
		}
		if took := time.Since(began); took < time.Minute {
			t.Errorf("built again on the same slot after %v", took)
		}
	})
}

// So does that of a build that was given up, if the builder does not tell that it has
// ended it.
func TestSlotOfABuildThatMayStillRun(t *testing.T) {
	for name, tc := range map[string]struct {
		reticent bool
		want     time.Duration
	}{
		"the builder tells":   {want: 10 * time.Second},
		"the builder is mute": {reticent: true, want: 10*time.Second + time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				builds := 0
				one := newMachine(t, "one", daemontest.Options{Before: on(daemon.OpBuildDerivation, func(ctx context.Context) error {
					if builds++; builds == 1 {
						return daemontest.Silent(ctx)
					}
					return nil
				})})
				one.reticent = tc.reticent
				r := newRig(t, rigOptions{builders: []*machine{one}, limits: Limits{Silence: 10 * time.Second, OrphanGrace: time.Minute}})
				began := time.Now()
				silent := r.connect(1, "x86_64-linux.0").inBackground(t.Context(), newDerivation("silent"))
				synctest.Wait()
				next := r.connect(2, "x86_64-linux.1").inBackground(t.Context(), newDerivation("next"))
				if got := <-silent; got.err != nil || got.Status != daemon.StatusTimedOut {
					t.Errorf("silent build: %+v", got)
				}
				if got := <-next; got.err != nil || !got.Status.Success() {
					t.Errorf("next build: %+v", got)
				}
				if took := time.Since(began); took < tc.want || took > tc.want+6*time.Second {
					t.Errorf("the slot was free after %v, want about %v", took, tc.want)
				}
			})
		})
	}
}
