// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// runCanary does what a builder does that can build: what the build's program would.
func runCanary(b *daemontest.Build) *daemon.BuildResult {
	word := b.Derivation.Args[len(b.Derivation.Args)-1]
	if err := b.Log(strings.TrimSpace(word)); err != nil {
		return nil
	}
	return &daemon.BuildResult{Status: daemon.StatusPermanentFailure, ErrorMessage: "builder failed with exit code 77"}
}

// mismatch is how a builder refuses a system.
func mismatch(system string) *daemon.BuildResult {
	return &daemon.BuildResult{Status: daemon.StatusInputRejected, ErrorMessage: "error: a '" + system + "' is required to build"}
}

// only builds for one system.
func only(system string) func(context.Context, *daemontest.Build) *daemon.BuildResult {
	return func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
		if b.Derivation.Platform != system {
			return mismatch(b.Derivation.Platform)
		}
		return runCanary(b)
	}
}

func answers(status daemon.BuildStatus, text string) func(context.Context, *daemontest.Build) *daemon.BuildResult {
	return func(context.Context, *daemontest.Build) *daemon.BuildResult {
		return &daemon.BuildResult{Status: status, ErrorMessage: text}
	}
}

func TestCanary(t *testing.T) {
	t.Parallel()
	two := func(t *Target) { t.Systems = []string{"x86_64-linux", "aarch64-linux"} }
	tests := map[string]struct {
		daemon      daemontest.Options
		change      func(*Target)
		want        Reason
		wantRefuted []string
		wantWords   []string
		wantState   State // other than healthy
	}{
		"passes": {daemon: daemontest.Options{Build: only("x86_64-linux")}, want: ReasonSystemsVerified, wantWords: []string{"tiny build succeeds"}},
		"one system of two": {
			daemon: daemontest.Options{Build: only("x86_64-linux")}, change: two, want: ReasonSystemsRefuted,
			wantRefuted: []string{"aarch64-linux"}, wantWords: []string{"aarch64-linux", "extra-platforms"},
		},
		"none": {
			daemon: daemontest.Options{Build: answers(daemon.StatusMiscFailure, "the build users group 'nixbld' has no members")}, change: two,
			want: ReasonCanaryFailed, wantRefuted: []string{"x86_64-linux", "aarch64-linux"},
			wantWords: []string{"x86_64-linux, aarch64-linux", "has no members", "build-users-group"}, wantState: StateUnhealthy,
		},
		"upload refused": {
			daemon: daemontest.Options{Before: daemontest.At(1, daemontest.Refuse("writing to file: No space left on device"))},
			want:   ReasonCanaryFailed, wantRefuted: []string{"x86_64-linux"}, wantWords: []string{"No space left", "nix-collect-garbage"},
			wantState: StateUnhealthy,
		},
		"little room": {
			daemon: daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
				result := runCanary(b)
				result.Status = daemon.StatusTransientFailure
				return result
			}},
			want: ReasonCanaryFailed, wantRefuted: []string{"x86_64-linux"}, wantWords: []string{"free space"}, wantState: StateUnhealthy,
		},
		"fails without having run": {
			daemon: daemontest.Options{Build: answers(daemon.StatusPermanentFailure, "builder failed with exit code 77")},
			want:   ReasonCanaryFailed, wantRefuted: []string{"x86_64-linux"}, wantState: StateUnhealthy,
		},
		"succeeds without having run": {want: ReasonCanaryInconclusive},
		"hangs up":                    {daemon: daemontest.Options{Before: daemontest.At(1, daemontest.HangUp)}, want: ReasonCanaryInconclusive, wantWords: []string{"hung up"}},
		"not privileged": {
			daemon: daemontest.Options{Before: daemontest.At(2, daemontest.Refuse("you are not privileged to build input-addressed derivations"))},
			want:   ReasonCanaryInconclusive, wantWords: []string{"not privileged"},
		},
		"confirms what the configuration lacks": {
			daemon: daemontest.Options{Build: only("riscv64-linux")}, change: func(t *Target) { t.Systems = []string{"riscv64-linux"} },
			want: ReasonSystemsVerified,
		},
		"confirms where nothing is told": {
			daemon: daemontest.Options{Build: only("x86_64-linux")},
			change: func(t *Target) { t.Discovery, t.Features = false, nil }, want: ReasonSystemsVerified,
		},
		"confirms features where nothing is told": {
			daemon: daemontest.Options{Build: only("x86_64-linux")}, change: func(t *Target) { t.Discovery = false }, want: ReasonSystemsVerified,
			wantWords: []string{"requires the declared features"},
		},
		"systems that the builder names": {
			daemon: daemontest.Options{Build: only("x86_64-linux")}, change: func(t *Target) { t.Systems = nil },
			want: ReasonSystemsRefuted, wantRefuted: []string{"i686-linux", "x86_64-v1-linux"},
		},
		"not asked for": {
			daemon: daemontest.Options{Build: answers(daemon.StatusMiscFailure, "never")}, change: func(t *Target) { t.Canary = false },
			want: ReasonSystemsVerified, wantWords: []string{"configuration"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nix := newNix(t, tc.daemon)
			target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: nix.exec}))
			target.Canary = true
			if tc.change != nil {
				tc.change(&target)
			}
			result, _ := probeOnce(t, target)
			got := result.Outcome(StepSystemsVerified)
			t.Log(got.Message)
			if got.Reason != tc.want {
				t.Errorf("got %+v, want %s", got, tc.want)
			}
			if diff := cmp.Diff(tc.wantRefuted, result.Facts.Refuted); diff != "" {
				t.Errorf("refuted (-want +got):\n%s", diff)
			}
			for _, word := range tc.wantWords {
				if !strings.Contains(got.Message, word) {
					t.Errorf("message %q lacks %q", got.Message, word)
				}
			}
			if tc.wantState == "" {
				tc.wantState = StateHealthy
			}
			if next, _ := observe(Snapshot{}, streaks{}, result, 3, time.Now()); next.State != tc.wantState {
				t.Errorf("state %s, want %s", next.State, tc.wantState)
			}
		})
	}
}

// A builder whose daemon gets a canary is left with one small path and nothing else.
func TestCanaryLeavesOnePath(t *testing.T) {
	t.Parallel()
	nix := newNix(t, daemontest.Options{Build: only("x86_64-linux")})
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: nix.exec}))
	target.Canary = true
	known := knowledge{}
	for range 3 {
		_, known = probeAgain(t, target, known)
		known.canaries = canaries{}
	}
	if got := nix.daemon.Builds(); len(got) != 6 || len(slices.Compact(got)) != 1 {
		t.Errorf("builds %v", got)
	}
	c := newCanary("x86_64-linux", nil)
	if _, _, ok := nix.daemon.Path(c.derivation.Outputs[0].Path); ok {
		t.Error("there is an output")
	}
	if info, _, ok := nix.daemon.Path(c.program.Path); !ok || info.NARSize > 1024 {
		t.Errorf("program %+v, %t", info, ok)
	}
}

// Of many probes few build, each for every system and once with features: see the comment at canaryInterval.
func TestCanaryIsRare(t *testing.T) {
	t.Parallel()
	broken := false
	nix := newNix(t, daemontest.Options{Build: only("x86_64-linux")})
	server := sshtest.New(t, sshtest.Behavior{Exec: func(command string, stdio sshtest.Stdio) int {
		if broken {
			return fail(1, "This account is currently not available.\n")(command, stdio)
		}
		return nix.exec(command, stdio)
	}})
	target := targetFor(t, server)
	target.Canary = true
	known, builds := knowledge{}, 0
	probe := func(why string, want int) {
		t.Helper()
		_, known = probeAgain(t, target, known)
		if got := len(nix.daemon.Builds()) - builds; got != want {
			t.Errorf("%s: %d builds, want %d", why, got, want)
		}
		builds = len(nix.daemon.Builds())
	}
	longAgo := func() { known.canaries.ran = time.Now().Add(-2 * canaryRetry) }
	probe("first", 2)
	for range 5 {
		probe("again", 0)
	}
	target.Systems = append(target.Systems, "aarch64-linux")
	probe("more systems", 3)
	longAgo()
	probe("refuted, to be repeated later", 0)
	known.canaries.due = time.Now()
	probe("repeated", 3)
	target.Systems = target.Systems[:1]
	known.canaries.due = time.Now().Add(canaryInterval)
	probe("fewer systems", 0)
	longAgo()
	known.canaries.nixVersion = "2.3"
	probe("another Nix", 2)
	broken = true
	probe("broken", 0)
	broken = false
	probe("recovered at once", 0)
	longAgo()
	probe("recovered", 2)
	longAgo()
	probe("recovered, once", 0)
}

func TestCanariesDue(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	pass := []canaryVerdict{{system: "a", status: StatusTrue}}
	refute := []canaryVerdict{{system: "a", status: StatusFalse, text: "no"}}
	nothing := []canaryVerdict{inconclusive("a", "hm")}
	var c canaries
	steps := []struct {
		verdicts []canaryVerdict
		want     time.Duration
		status   Status
	}{
		{pass, 54 * time.Minute, StatusTrue}, // an hour less a tenth
		{refute, 30 * time.Second, StatusFalse},
		{nothing, time.Minute, StatusFalse}, // still refuted
		{refute, 2 * time.Minute, StatusFalse},
		{refute, 4 * time.Minute, StatusFalse},
		{refute, 5 * time.Minute, StatusFalse},
		{refute, 5 * time.Minute, StatusFalse},
		{pass, 54 * time.Minute, StatusTrue},
		{nothing, 30 * time.Second, StatusUnknown},
	}
	for i, step := range steps {
		c.update(slices.Clone(step.verdicts), "2.34.8", start, 0)
		if got := c.due.Sub(start); got != step.want || c.verdict("a").status != step.status {
			t.Errorf("step %d: %s, %+v", i, got, c.verdict("a"))
		}
		if c.isDue([]string{"a"}, nil, "2.34.8", c.due.Add(-time.Second)) || !c.isDue([]string{"a"}, nil, "2.34.8", c.due) {
			t.Errorf("step %d: not due at %s", i, step.want)
		}
	}
}

func TestRestoredCanaries(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	well := restore(Snapshot{
		State: StateHealthy, Reason: ReasonAllPassed,
		Result: Result{Facts: Facts{NixVersion: "2.34.8", Systems: []string{"a", "b"}}},
	})
	refuted := well
	refuted.Result.Facts.Refuted = []string{"a"}
	doubtful := well
	doubtful.Result.Outcomes = unverified(well.Result.Outcomes, StepSystemsVerified)
	tests := map[string]struct {
		target Target
		kept   Snapshot
		want   bool // it is known to be well
	}{
		"well":          {Target{Canary: true, Systems: []string{"a"}}, well, true},
		"discovered":    {Target{Canary: true}, well, true},
		"not asked for": {Target{Systems: []string{"a"}}, well, false},
		"refuted":       {Target{Canary: true, Systems: []string{"a", "b"}}, refuted, false},
		"doubtful":      {Target{Canary: true, Systems: []string{"a"}}, doubtful, false},
		"unhealthy":     {Target{Canary: true, Systems: []string{"a"}}, restore(Snapshot{State: StateUnhealthy, Reason: ReasonCanaryFailed}), false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := restoredCanaries(&tc.target, &tc.kept, now, 0.25)
			systems := canarySystems(&tc.target, tc.kept.Result.Facts.Systems)
			if due := c.isDue(systems, nil, "2.34.8", now.Add(14*time.Minute)); due == tc.want {
				t.Errorf("due: %t, %+v", due, c)
			}
			if !c.isDue(systems, nil, "2.34.8", now.Add(15*time.Minute)) {
				t.Error("never due")
			}
		})
	}
}

// After a restart what was refuted stays so, and is told in the same words, until a
// canary shows something.
func TestRestoredRefutations(t *testing.T) {
	t.Parallel()
	kept := restore(Snapshot{State: StateHealthy, Reason: ReasonAllPassed})
	kept.Result.Outcomes = unverified(kept.Result.Outcomes, StepSystemsVerified)
	told := slices.Clone(kept.Result.Outcomes)
	told[len(told)-1] = Outcome{Step: StepSystemsVerified, Status: StatusFalse, Reason: ReasonSystemsRefuted, Message: "mac-2: it said so"}
	features := Facts{RefutedFeatures: []string{"big-parallel"}}
	both := Facts{Refuted: []string{"aarch64-linux"}, RefutedFeatures: features.RefutedFeatures}
	tests := map[string]struct {
		result Result
		works  bool // the first canary shows something
		want   Reason
		words  string
	}{
		"both":              {Result{Outcomes: told, Facts: both}, false, ReasonSystemsRefuted, "mac-2: it said so"},
		"features":          {Result{Outcomes: told, Facts: features}, false, ReasonFeaturesRefuted, "mac-2: it said so"},
		"why is not known":  {Result{Outcomes: kept.Result.Outcomes, Facts: both}, false, ReasonSystemsRefuted, "aarch64-linux, big-parallel failed before"},
		"cleared by builds": {Result{Outcomes: told, Facts: both}, true, ReasonSystemsVerified, "tiny build succeeds"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nix := newNix(t, daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
				if tc.works {
					return runCanary(b)
				}
				return &daemon.BuildResult{Status: daemon.StatusTransientFailure, ErrorMessage: "interrupted"}
			}})
			target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: nix.exec}))
			target.Canary, target.Systems = true, []string{"x86_64-linux", "aarch64-linux"}
			was := kept
			was.Result = tc.result
			result, _ := probeAgain(t, target, knowledge{canaries: restoredCanaries(&target, &was, time.Now(), 0)})
			got := result.Outcome(StepSystemsVerified)
			if got.Reason != tc.want || !strings.Contains(got.Message, tc.words) || strings.Count(got.Message, "mac-2") != 1 {
				t.Errorf("got %+v", got)
			}
			if len(nix.daemon.Builds()) == 0 {
				t.Error("no canary")
			}
			if tc.works {
				tc.result.Facts = Facts{}
			}
			want := [][]string{tc.result.Facts.Refuted, tc.result.Facts.RefutedFeatures}
			if diff := cmp.Diff(want, [][]string{result.Facts.Refuted, result.Facts.RefutedFeatures}); diff != "" {
				t.Errorf("refuted (-want +got):\n%s", diff)
			}
		})
	}
}

// Two endpoints that lead to one machine get no canaries at the same time.
func TestPlaces(t *testing.T) {
	t.Parallel()
	var p places
	leave, ok := p.enter("a:22")
	if _, again := p.enter("a:22"); !ok || again {
		t.Errorf("first %t, second %t", ok, again)
	}
	if _, other := p.enter("b:22"); !other {
		t.Error("another machine is taken")
	}
	leave()
	if _, ok := p.enter("a:22"); !ok {
		t.Error("not given back")
	}
}

// A probe that is given up ends the build on the builder.
func TestCancelledCanaryEndsTheBuild(t *testing.T) {
	t.Parallel()
	started, ended := make(chan struct{}), make(chan error, 1)
	nix := newNix(t, daemontest.Options{Build: func(ctx context.Context, _ *daemontest.Build) *daemon.BuildResult {
		close(started)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil
	}})
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: nix.exec}))
	target.Canary = true
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-started
		cancel()
	}()
	if _, _, err := testChecker().check(ctx, &target, knowledge{}); err == nil {
		t.Error("no error")
	}
	select {
	case err := <-ended:
		if !errors.Is(err, daemon.ErrClientGone) {
			t.Errorf("the build ends with %v", err)
		}
	case <-time.After(shortTimeout):
		t.Error("the build goes on")
	}
}
