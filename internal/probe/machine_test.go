// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// allThresholds are thresholds that a machine with machineOutput keeps to.
var allThresholds = Thresholds{
	MinFreeBytes: 1 << 30, MaxLoadPercent: 200, MaxCPUPressure: 50, MaxMemoryPressure: 50, MaxIOPressure: 50, MaxClockSkew: 5 * time.Minute,
}

// measured is a builder whose machine prints what is in text.
type measured struct {
	text   atomic.Pointer[string]
	asked  atomic.Int64
	target Target
	nix    *nix
}

func newMeasured(t *testing.T, thresholds Thresholds) *measured {
	t.Helper()
	m := &measured{nix: newNix(t, daemontest.Options{})}
	m.nix.commands["/bin/sh -c "] = func(command string, stdio sshtest.Stdio) int {
		m.asked.Add(1)
		return print(*m.text.Load())(command, stdio)
	}
	m.target = targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: m.nix.exec}))
	m.target.Thresholds = thresholds
	m.print(machineOutput(time.Now().Unix()))
	return m
}

func (m *measured) print(text string) { m.text.Store(&text) }

// room makes the machine have so many MiB free.
func (m *measured) room(mib string) {
	m.print(lines("store Filesystem 1024-blocks Used Available Capacity Mounted on /dev/vda1 104857600 52428800 " + mib + "000 53% /nix"))
}

func TestMachineIsMeasured(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, allThresholds)
	result, _ := probeOnce(t, m.target)
	if got := result.Outcome(StepMachineFit); got.Status != StatusTrue || got.Reason != ReasonMachineFit {
		t.Errorf("got %+v", got)
	}
	facts := result.Facts
	if skew := facts.ClockSkew; skew > 10*time.Second || skew < -10*time.Second {
		t.Errorf("clock off by %s", skew)
	}
	type figures struct {
		Free, Size                   int64
		Processors, Load             int
		Known                        bool
		CPUPressure, Memory, Storage int
	}
	want := figures{47185920 << 10, 104857600 << 10, 4, 12, true, 2, 0, 8}
	got := figures{facts.FreeBytes, facts.StoreBytes, facts.Processors, facts.LoadPercent, facts.PressureKnown, facts.CPUPressure, facts.MemoryPressure, facts.IOPressure}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	other := facts
	other.FreeBytes, other.LoadPercent, other.ClockSkew = 1, 2, 3
	if !facts.equal(other) {
		t.Error("facts differ by what was measured")
	}
}

// What is passed is said with its threshold and what to do.
func TestMachineThresholds(t *testing.T) {
	t.Parallel()
	now := time.Now().Unix()
	pressure := func(what string) string {
		return strings.Replace(machineOutput(now), "\n"+what+" some avg10=", "\n"+what+" some avg10=1.00 avg60=93.20 x=", 1)
	}
	tests := map[string]struct {
		text       string
		thresholds Thresholds
		wantReason Reason
		wantWords  []string
	}{
		"disk": {
			strings.Replace(machineOutput(now), " 47185920 ", " 512000 ", 1), allThresholds, ReasonDiskPressure,
			[]string{"only about 500 MiB free", "threshold: 1 GiB", "from 1.2 GiB on", "nix-collect-garbage", "min-free", "spec.thresholds.minFreeSpace"},
		},
		"disk full": {
			strings.Replace(machineOutput(now), " 47185920 ", " 0 ", 1), allThresholds, ReasonDiskPressure, []string{"less than 16 MiB free"},
		},
		"load":            {strings.Replace(machineOutput(now), "load 0.50", "load 12.40", 1), allThresholds, ReasonOverloaded, []string{"about 310 %", "200 %", "Lower maxJobs"}},
		"cpu pressure":    {pressure("cpu"), allThresholds, ReasonOverloaded, []string{"wait for a processor about 93 %", "threshold: 50 %"}},
		"memory pressure": {pressure("memory"), allThresholds, ReasonOverloaded, []string{"wait for memory about 93 %"}},
		"io pressure":     {pressure("io"), allThresholds, ReasonOverloaded, []string{"wait for its disks about 93 %"}},
		"disk and load": {
			strings.NewReplacer(" 47185920 ", " 512000 ", "load 0.50", "load 12.40").Replace(machineOutput(now)), allThresholds, ReasonDiskPressure, []string{"500 MiB"},
		},
		"clock ahead":  {machineOutput(now + 3*3600), allThresholds, ReasonClockSkewed, []string{"about 3 hours ahead of", "threshold: 300 s", "chrony"}},
		"clock behind": {machineOutput(0), allThresholds, ReasonClockSkewed, []string{" days behind"}},
		"no pressure":  {lines("clock 1"), Thresholds{MaxIOPressure: 5, MaxMemoryPressure: 5}, ReasonMachineNotMeasured, []string{"its pressure on memory, its pressure on its disks"}},
		"no report":    {"", allThresholds, ReasonMachineNotMeasured, []string{"login shell of nixt"}},
		"no thresholds looked at": {
			strings.Replace(machineOutput(0), " 47185920 ", " 0 ", 1), Thresholds{MaxLoadPercent: 100}, ReasonMachineFit, nil,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMeasured(t, tc.thresholds)
			m.print(tc.text)
			result, _ := probeOnce(t, m.target)
			got := result.Outcome(StepMachineFit)
			t.Log(got.Message)
			if got.Reason != tc.wantReason {
				t.Errorf("got %+v, want %s", got, tc.wantReason)
			}
			for _, word := range tc.wantWords {
				if !strings.Contains(got.Message, word) {
					t.Errorf("%q lacks %q", got.Message, word)
				}
			}
			_, failed := result.Failure()
			if want := tc.wantReason == ReasonDiskPressure || tc.wantReason == ReasonOverloaded; failed != want {
				t.Errorf("failed: %v, want %v", failed, want)
			}
			if later := result.Outcome(StepSystemsVerified); (later.Reason == ReasonNotReached) != failed {
				t.Errorf("systems: %+v", later)
			}
		})
	}
}

// A machine comes back when it is better by a fifth, says the same all the while, and
// is held to new thresholds at once.
func TestMachineHysteresis(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, Thresholds{MinFreeBytes: 1000 << 20})
	known := knowledge{}
	message := ""
	for i, step := range []struct {
		mib  string // thousands of KiB
		min  int64  // MiB; 0: as before
		want Reason
		new  bool // the message may differ from the one before
	}{
		{"1100", 0, ReasonMachineFit, true},
		{"1030", 0, ReasonMachineFit, false},
		{"1000", 0, ReasonDiskPressure, true}, // 1000 KiB are less than 1024
		{"1100", 0, ReasonDiskPressure, false},
		{"1200", 0, ReasonDiskPressure, false},
		{"600", 0, ReasonDiskPressure, false},
		{"400", 0, ReasonDiskPressure, true},
		{"700", 0, ReasonDiskPressure, false},
		{"1229", 0, ReasonMachineFit, true},
		{"1100", 0, ReasonMachineFit, false},
		{"900", 0, ReasonDiskPressure, true},
		{"900", 800, ReasonMachineFit, true},
	} {
		m.room(step.mib)
		if step.min > 0 {
			m.target.Thresholds.MinFreeBytes = step.min << 20
		}
		var result Result
		result, known = probeAgain(t, m.target, known)
		got := result.Outcome(StepMachineFit)
		if got.Reason != step.want || !step.new && got.Message != message {
			t.Errorf("step %d (%s): got %+v, want %s", i, step.mib, got, step.want)
		}
		message = got.Message
	}
}

// A machine that was out of use and does not answer stays so for a little while only.
func TestMachineThatDoesNotAnswerAnyMore(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, Thresholds{MinFreeBytes: 1 << 30})
	m.room("100")
	known := knowledge{}
	want := []Reason{ReasonDiskPressure, ReasonDiskPressure, ReasonDiskPressure, ReasonMachineNotMeasured, ReasonMachineNotMeasured}
	for i, reason := range want {
		var result Result
		result, known = probeAgain(t, m.target, known)
		if got := result.Outcome(StepMachineFit); got.Reason != reason {
			t.Errorf("probe %d: got %+v, want %s", i, got, reason)
		}
		m.print("")
	}
	if got := m.asked.Load(); got != 4 {
		t.Errorf("asked %d times, want 4: one that cannot be measured is left alone", got)
	}
	m.room("90000")
	if result, _ := probeAgain(t, m.target, known.anew()); result.Outcome(StepMachineFit).Reason != ReasonMachineFit {
		t.Errorf("asked for: %+v", result.Outcome(StepMachineFit))
	}
	m.target.Thresholds = Thresholds{}
	m.asked.Store(0)
	if result, _ := probeAgain(t, m.target, known); result.Outcome(StepMachineFit).Status != StatusTrue || m.asked.Load() != 0 {
		t.Errorf("without thresholds: %+v, asked %d times", result.Outcome(StepMachineFit), m.asked.Load())
	}
}

// A machine that is well and does not answer is not well for ever.
func TestMachineThatIsTooBusyToAnswer(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, Thresholds{MinFreeBytes: 1 << 30, MaxClockSkew: time.Minute})
	known := knowledge{}
	for i, step := range []struct {
		text string
		want Reason
	}{
		{machineOutput(time.Now().Unix()), ReasonMachineFit},
		{"", ReasonMachineFit},
		{"sh: fork: retry", ReasonMachineFit},
		{machineOutput(7), ReasonClockSkewed},
		{"", ReasonClockSkewed},
		{"", ReasonClockSkewed},
		{"", ReasonMachineNotMeasured},
	} {
		m.print(step.text)
		var result Result
		result, known = probeAgain(t, m.target, known)
		if got := result.Outcome(StepMachineFit); got.Reason != step.want {
			t.Errorf("probe %d: got %+v, want %s", i, got, step.want)
		}
	}
	// A probe that is given up says nothing about the machine.
	known = knowledge{}
	ctx, cancel := context.WithCancel(t.Context())
	m.nix.commands["/bin/sh -c "] = func(string, sshtest.Stdio) int {
		cancel()
		return 1
	}
	if _, after, err := testChecker().check(ctx, &m.target, known); err == nil || after.fitness.silent > 0 {
		t.Errorf("given up: %v, %+v", err, after.fitness)
	}
}

// A clock that cannot be read for once is off in the direction that it was.
func TestClockThatIsNotReadForOnce(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, Thresholds{MaxClockSkew: time.Minute})
	known := knowledge{}
	for i, text := range []string{machineOutput(7), lines("load 0.50")} {
		m.print(text)
		var result Result
		result, known = probeAgain(t, m.target, known)
		if got := result.Outcome(StepMachineFit); got.Reason != ReasonClockSkewed || !strings.Contains(got.Message, "days behind") {
			t.Errorf("probe %d: got %+v", i, got)
		}
	}
}

// After a restart a machine that was out of use is held to the same.
func TestRestoredFitness(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, Thresholds{MinFreeBytes: 1000 << 20})
	kept := restore(Snapshot{State: StateUnhealthy, Reason: ReasonDiskPressure, Message: "m"})
	for mib, want := range map[string]Reason{"1100": ReasonDiskPressure, "1300": ReasonMachineFit} {
		m.room(mib)
		result, _ := probeAgain(t, m.target, knowledge{fitness: restoredFitness(&m.target, &kept)})
		if got := result.Outcome(StepMachineFit); got.Reason != want {
			t.Errorf("%s: got %+v, want %s", mib, got, want)
		}
	}
}

// Whatever of an answer is missing when: a machine that is said to be out of use is not
// asked for its systems.
func TestMachineThatAnswersInParts(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, Thresholds{MinFreeBytes: 1 << 30})
	m.room("100")
	known := knowledge{}
	for i, text := range []string{*m.text.Load(), lines("clock 1"), "", ""} {
		m.print(text)
		var result Result
		result, known = probeAgain(t, m.target, known)
		fit, systems := result.Outcome(StepMachineFit), result.Outcome(StepSystemsVerified)
		if (fit.Reason == ReasonDiskPressure) != (systems.Reason == ReasonNotReached) {
			t.Errorf("probe %d: %+v, then %+v", i, fit, systems)
		}
	}
}

// Until it is measured again, what was said of it before the restart stands.
func TestRestoredFitnessWithoutFigures(t *testing.T) {
	t.Parallel()
	now := time.Now().Unix()
	tests := map[string]struct {
		text  string
		words string
	}{
		"no answer": {"", "said before"},
		"no pressure told": {
			strings.NewReplacer("load 0.50", "load 12.40", "cpu some", "cpu").Replace(machineOutput(now)),
			"load is about 310 % of its processors (threshold: 200 %); its pressure on a processor was beyond its threshold, and is not told any more",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMeasured(t, allThresholds)
			m.print(tc.text)
			kept := restore(Snapshot{State: StateUnhealthy, Reason: ReasonOverloaded, Message: "said before"})
			result, _ := probeAgain(t, m.target, knowledge{fitness: restoredFitness(&m.target, &kept)})
			if got := result.Outcome(StepMachineFit); got.Reason != ReasonOverloaded || !strings.Contains(got.Message, tc.words) || strings.Contains(got.Message, " 0 %") {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// A daemon that fails on a full disk does not say so.
func TestFullDiskExplainsDaemonsFailure(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		daemon    sshtest.Exec
		mib       string
		threshold int64
		wantStep  Step
		want      Reason
	}{
		"hangs up, disk full":                 {fail(0, ""), "0", 1 << 30, StepMachineFit, ReasonDiskPressure},
		"ends, disk full":                     {fail(1, "error: oh"), "1", 1 << 30, StepMachineFit, ReasonDiskPressure},
		"hangs up, disk full, no thresholds":  {fail(0, ""), "0", 0, StepMachineFit, ReasonDiskPressure},
		"hangs up, little room":               {fail(0, ""), "100", 1 << 30, StepNixAvailable, ReasonDaemonHungUp},
		"hangs up, room not known":            {fail(0, ""), "?", 1 << 30, StepNixAvailable, ReasonDaemonHungUp},
		"not there, disk full":                {fail(127, ""), "0", 1 << 30, StepNixAvailable, ReasonNixNotFound},
		"denied because of the user, no room": {fail(1, "error: permission denied"), "0", 1 << 30, StepNixAvailable, ReasonDaemonDenied},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMeasured(t, Thresholds{MinFreeBytes: tc.threshold})
			m.nix.commands["nix-daemon"] = tc.daemon
			m.room(tc.mib)
			result, _ := probeOnce(t, m.target)
			if tc.wantStep == StepMachineFit {
				if got := result.Outcome(StepNixAvailable); got.Status != StatusUnknown || got.Reason != ReasonStoreFull {
					t.Errorf("nix: %+v", got)
				}
			}
			expectFailure(t, result, tc.wantStep, tc.want)
		})
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	tests := map[float64]struct{ exactly, roughly string }{
		0:                  {"0 bytes", "0 bytes"},
		1000:               {"1000 bytes", "1000 bytes"},
		1 << 10:            {"1 KiB", "1 KiB"},
		8.9 * (1 << 20):    {"8.9 MiB", "9 MiB"},
		943 * (1 << 20):    {"943 MiB", "900 MiB"},
		1.2 * (1 << 30):    {"1.2 GiB", "1 GiB"},
		150 * (1 << 30):    {"150 GiB", "200 GiB"},
		2.25 * (1 << 40):   {"2.2 TiB", "2 TiB"},
		123456 * (1 << 40): {"123456 TiB", "100000 TiB"},
	}
	for n, tc := range tests {
		if exactly, roughly := size(n, false), size(n, true); exactly != tc.exactly || roughly != tc.roughly {
			t.Errorf("%g: got %q and %q, want %+v", n, exactly, roughly, tc)
		}
	}
	for seconds, want := range map[float64]string{60: "60 seconds", 300: "5 minutes", 10800: "3 hours", 1e6: "12 days"} {
		if got := span(seconds); got != want {
			t.Errorf("%g: got %q, want %q", seconds, got, want)
		}
	}
}
