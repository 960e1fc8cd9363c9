// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// ends is a builder on which every build ends with that status and message.
func ends(status daemon.BuildStatus, message string) daemontest.Options {
	return daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
		b.Send(daemon.StartActivity{ID: 99})
		return &daemon.BuildResult{Status: status, ErrorMessage: message}
	}}
}

const noted = "builder failed\nnote: build failure may have been caused by lack of free disk space"

// TestWhichFailuresAreTriedElsewhere has four builders that all end builds in the same
// way.
func TestWhichFailuresAreTriedElsewhere(t *testing.T) {
	fixed := newDerivation("fetched")
	fixed.Outputs[0].HashAlgo, fixed.Outputs[0].Hash = "r:sha256", strings.Repeat("0", 64)
	plain := newDerivation("out")
	tests := map[string]struct {
		status  daemon.BuildStatus
		message string
		d       derivation
		want    int // tries
	}{
		"permanent":                      {daemon.StatusPermanentFailure, "exit code 1", plain, 1},
		"input rejected":                 {daemon.StatusInputRejected, "", plain, 1},
		"output rejected":                {daemon.StatusOutputRejected, "hash mismatch", fixed, 1},
		"transient":                      {daemon.StatusTransientFailure, "exit code 1", plain, 3},
		"transient, fixed output":        {daemon.StatusTransientFailure, "cannot download", fixed, 1},
		"disk space note, fixed output":  {daemon.StatusTransientFailure, noted, fixed, 3},
		"disk space note":                {daemon.StatusTransientFailure, noted, plain, 3},
		"cached failure":                 {daemon.StatusCachedFailure, "", plain, 1},
		"timed out there":                {daemon.StatusTimedOut, "timed out after 1 seconds", plain, 1},
		"misc":                           {daemon.StatusMiscFailure, "derivation is wrong", plain, 1},
		"misc, the builder's own":        {daemon.StatusMiscFailure, "writing to file: No space left on device", plain, 4},
		"misc, the builder's database":   {daemon.StatusMiscFailure, "committing transaction: database or disk is full", plain, 4},
		"dependency failed":              {daemon.StatusDependencyFailed, "", plain, 1},
		"log limit there":                {daemon.StatusLogLimitExceeded, "", plain, 1},
		"not deterministic":              {daemon.StatusNotDeterministic, "", plain, 1},
		"no substituters":                {daemon.StatusNoSubstituters, "", plain, 1},
		"log that speaks of a full disk": {daemon.StatusPermanentFailure, "> No space left on device", plain, 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var machines []*machine
				for _, name := range []string{"a", "b", "c", "d"} {
					machines = append(machines, newMachine(t, name, ends(tc.status, tc.message)))
				}
				r := newRig(t, rigOptions{builders: machines})
				c := r.connect(1, "x86_64-linux.0")
				result, err := c.build(tc.d)
				if err != nil || result.Status != tc.status || !strings.HasPrefix(result.ErrorMessage, tc.message) {
					t.Errorf("result = %+v, %v", result, err)
				}
				tried := 0
				for _, m := range machines {
					n := len(m.Builds())
					tried += n
					if n > 1 {
						t.Errorf("%s built %d times", m.id, n)
					}
					if n > 0 && !strings.Contains(result.ErrorMessage, m.id) {
						t.Errorf("the message does not name %s: %q", m.id, result.ErrorMessage)
					}
				}
				if tried != tc.want {
					t.Errorf("%d tries, want %d", tried, tc.want)
				}
				for _, line := range c.said.lines() {
					if !strings.Contains(line, " failed (") || !strings.Contains(line, "): rebuilding on b/") {
						t.Errorf("line %q", line)
					}
				}
				if n := len(c.said.lines()); n != tc.want-1 {
					t.Errorf("%d lines: %q", n, c.said.lines())
				}
				r.noneLeft()
			})
		})
	}
}

func TestTransientFailureOnTheOnlyBuilder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", ends(daemon.StatusTransientFailure, "it rains"))
		r := newRig(t, rigOptions{builders: []*machine{m}})
		result, err := r.connect(1, "x86_64-linux.0").build(newDerivation("out"))
		if err != nil || result.ErrorMessage != "it rains (on builder b/one)" || len(m.Builds()) != 1 {
			t.Errorf("%+v, %v after %d tries", result, err, len(m.Builds()))
		}
	})
}

// The other builder goes away between the decision and the placement: the build is not
// run again where it has failed.
func TestTransientFailureIsNotTriedAgainOnTheSameBuilder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := newMachine(t, "other", daemontest.Options{})
		m := newMachine(t, "one", ends(daemon.StatusTransientFailure, "it rains"), slots(8))
		r := newRig(t, rigOptions{builders: []*machine{m, other}})
		blocker := r.connect(2, "x86_64-linux.1")
		other.down() // which nobody has noticed
		c := r.connect(1, "x86_64-linux.0")
		result, err := c.build(newDerivation("out"))
		if err != nil || !strings.HasPrefix(result.ErrorMessage, "it rains (on builder b/one)") || len(m.Builds()) != 1 {
			t.Errorf("%+v, %v after %d tries", result, err, len(m.Builds()))
		}
		blocker.Close()
		r.noneLeft()
	})
}

func TestTransientFailureThatPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := newMachine(t, "bad", ends(daemon.StatusTransientFailure, "it rains"), slots(8))
		good := newMachine(t, "good", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{bad, good}})
		c := r.connect(1, "x86_64-linux.0")
		c.mustBuild(newDerivation("out"))
		if want := "left b/bad: Answering"; !slices.Contains(r.events.all(), want) {
			t.Errorf("events %q, want %q", r.events.all(), want)
		}
		stopped := 0
		for _, m := range c.said.list {
			if stop, ok := m.(daemon.StopActivity); ok && stop.ID == 99 {
				stopped++
			}
		}
		if stopped != 1 {
			t.Errorf("the activity of the failed try was ended %d times", stopped)
		}
	})
}

// A builder that cannot store what it is sent.
func TestBuilderWithAFullDisk(t *testing.T) {
	full := daemontest.Refuse("error: writing to file '/nix/store/x': No space left on device")
	for _, op := range []daemon.Operation{daemon.OpAddMultipleToStore, daemon.OpBuildDerivation} {
		t.Run(op.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bad := newMachine(t, "bad", daemontest.Options{Before: on(op, full)}, slots(8))
				good := newMachine(t, "good", daemontest.Options{})
				r := newRig(t, rigOptions{builders: []*machine{bad, good}})
				c := r.connect(1, "x86_64-linux.0")
				in := newFile("in", "I")
				c.upload(in)
				c.mustBuild(newDerivation("out", in))
				want := []string{"builder b/bad failed (no space left on device): rebuilding on b/good"}
				if got := c.said.lines(); !slices.Equal(got, want) {
					t.Errorf("lines = %q, want %q", got, want)
				}

				// Without the other one the full disk gets a respite, and another, but not
				// for ever.
				good.down()
				began := time.Now()
				next := r.connect(2, "x86_64-linux.0")
				_, err := next.build(newDerivation("next", in))
				if err == nil || !strings.Contains(err.Error(), "No space left on device") {
					t.Errorf("with no other builder: %v", err)
				}
				if took := time.Since(began); took < firstRespite || took > time.Hour {
					t.Errorf("given up after %v", took)
				}
				if lines := next.said.lines(); lines[0] != "builder b/bad failed (no space left on device): the build waits" ||
					!strings.Contains(lines[1], "b/bad left out because this build failed there") {
					t.Errorf("lines = %q", lines)
				}
			})
		})
	}
}

func TestBuilderThatRefusesTheInputs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := newMachine(t, "bad", daemontest.Options{Before: on(daemon.OpAddMultipleToStore, daemontest.Refuse("not an absolute path"))}, slots(8))
		r := newRig(t, rigOptions{builders: []*machine{bad, newMachine(t, "good", daemontest.Options{})}})
		c := r.connect(1, "x86_64-linux.0")
		in := newFile("in", "I")
		c.upload(in)
		c.mustBuild(newDerivation("out", in))
		want := []string{"builder b/bad failed (it refuses the inputs): rebuilding on b/good"}
		if got := c.said.lines(); !slices.Equal(got, want) {
			t.Errorf("lines = %q, want %q", got, want)
		}
	})
}

func TestErrorsNameEveryBuilderTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := newMachine(t, "bad", daemontest.Options{Before: on(daemon.OpBuildDerivation, daemontest.HangUp)}, slots(8))
		second := newMachine(t, "second", ends(daemon.StatusPermanentFailure, "exit code 1"))
		r := newRig(t, rigOptions{builders: []*machine{bad, second}})
		result, err := r.connect(1, "x86_64-linux.0").build(newDerivation("out"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"exit code 1 (on builder b/second)", "tried before: builder b/bad: "} {
			if !strings.Contains(result.ErrorMessage, want) {
				t.Errorf("message %q, want %q in it", result.ErrorMessage, want)
			}
		}

		refusing := newMachine(t, "refusing", daemontest.Options{Before: on(daemon.OpBuildDerivation, daemontest.Refuse("the moon is full"))})
		r.use(bad, refusing)
		_, err = r.connect(2, "x86_64-linux.0").build(newDerivation("other"))
		if err == nil || !strings.HasPrefix(err.Error(), "BuildDerivation (36): the moon is full; tried before: builder b/bad: ") {
			t.Errorf("error = %v", err)
		}
	})
}

// The phases in which a builder can be lost, as they are logged and recorded.
func TestPhaseOfALoss(t *testing.T) {
	tests := map[string]struct {
		op    daemon.Operation
		phase Phase
	}{
		"asked":     {daemon.OpQueryValidPaths, PhaseUploading},
		"uploading": {daemon.OpAddMultipleToStore, PhaseUploading},
		"building":  {daemon.OpBuildDerivation, PhaseBuilding},
		"answering": {daemon.OpQueryPathInfo, PhaseAnswering},
		"returning": {daemon.OpNARFromPath, PhaseReturning},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bad := newMachine(t, "bad", daemontest.Options{Before: on(tc.op, daemontest.HangUp)}, slots(8))
				r := newRig(t, rigOptions{builders: []*machine{bad, newMachine(t, "good", daemontest.Options{})}})
				c := r.connect(1, "x86_64-linux.0")
				in := newFile("in", "I")
				c.send(in)
				c.mustBuild(newDerivation("out", in))
				if want := fmt.Sprint("left b/bad: ", tc.phase); !slices.Contains(r.events.all(), want) {
					t.Errorf("events %q, want %q", r.events.all(), want)
				}
				if want := fmt.Sprintf("builder=b/bad phase=%s seconds=", tc.phase); !strings.Contains(r.log.String(), want) {
					t.Errorf("the log has no %q", want)
				}
			})
		})
	}
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", minutes(nil), features("kvm"))
		m.down()
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c, other := r.connect(1, "x86_64-linux.kvm.0"), r.connect(2, "x86_64-linux.1")
		began := time.Now()
		d := newDerivation("hello").requiring("kvm")
		built := c.inBackground(t.Context(), d)
		time.Sleep(time.Second)
		b := r.server.Status().Builds
		if len(b) != 1 || b[0].Phase != "Queued" || b[0].Builder != "" || !strings.Contains(b[0].Waiting, "b/one unreachable since") ||
			b[0].Name != "hello" || b[0].Derivation != d.path || !b[0].Since.Equal(began) || !slices.Equal(b[0].Features, []string{"kvm"}) {
			t.Errorf("waiting build: %+v", b)
		}
		m.up()
		time.Sleep(2 * time.Second)
		waiting := other.inBackground(t.Context(), newDerivation("other"))
		time.Sleep(time.Second)
		s := r.server.Status()
		if b := s.Builds; len(b) != 2 || b[0].Phase != "Building" || b[0].Builder != "b/one" || b[0].Waiting != "" || !b[0].PhaseSince.After(began) || b[1].Phase != "Queued" {
			t.Errorf("running build: %+v", b)
		}
		if p := r.server.Phases(); len(p) != 5 || p["Building"] != 1 || p["Queued"] != 1 {
			t.Errorf("phases: %v", p)
		}
		if s.Connections != 2 || s.Draining {
			t.Errorf("status: %+v", s)
		}
		<-built
		<-waiting
		if b := r.server.Status().Builds; len(b) != 0 {
			t.Errorf("finished builds: %+v", b)
		}
	})
}
