// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

const (
	// measureRetry is when a machine is asked again that could not be measured
	// maxUnread times. Another shell or command for the user is all that changes that.
	measureRetry = 10 * time.Minute
	// maxUnread is how many probes in a row have to fail to read a figure until what
	// was known of it is forgotten: a machine that is overloaded may be too slow to
	// say so, and one that cannot be measured any more must not stay out for ever.
	maxUnread = 3
	// almostNothing is so little room that nix-daemon fails for want of it.
	almostNothing = 4 << 20
)

// machine finds out whether disk, load and clock are within the thresholds. It
// reports whether the builder's systems are worth asking for.
func (c *checker) machine(ctx context.Context, r *report, known *knowledge, conn *sshconn.Conn) bool {
	t := r.target
	if t.Thresholds == (Thresholds{}) {
		r.pass(StepMachineFit, ReasonMachineFit, messageMachine(t, ReasonMachineFit, nil))
		return true
	}
	fit := &known.fitness
	if fit.thresholds != t.Thresholds {
		*fit = fitness{thresholds: t.Thresholds}
	}
	now := time.Now()
	if now.Before(fit.mute) {
		r.unknown(StepMachineFit, ReasonMachineNotMeasured, messageMachine(t, ReasonMachineNotMeasured, nil))
		return true
	}
	m, ok := measure(ctx, t, conn)
	if ctx.Err() != nil {
		return false // It is our doing that there is no answer.
	}
	m.enter(&r.facts)
	if ok {
		fit.silent = 0
	} else if fit.silent++; fit.silent >= maxUnread {
		fit.mute, fit.last = now.Add(measureRetry), Outcome{}
	}
	defer func() { fit.last = r.outcomes[len(r.outcomes)-1] }()
	reason, what := fit.judge(&m)
	switch {
	case reason == ReasonDiskPressure || reason == ReasonOverloaded:
		message := messageMachine(t, reason, what)
		if !ok && fit.last.Reason == reason {
			message = fit.last.Message
		}
		r.fail(StepMachineFit, reason, message)
		return false
	case !ok && fit.last.Reason != "":
		// Too busy to answer once; nothing else is known to have changed.
		r.add(StepMachineFit, fit.last.Status, fit.last.Reason, fit.last.Message)
	case !ok:
		r.unknown(StepMachineFit, ReasonMachineNotMeasured, messageMachine(t, ReasonMachineNotMeasured, nil))
	case reason == ReasonClockSkewed:
		r.fail(StepMachineFit, reason, messageMachine(t, reason, what))
	case reason == ReasonMachineNotMeasured:
		r.unknown(StepMachineFit, reason, messageMachine(t, reason, what))
	default:
		r.pass(StepMachineFit, reason, messageMachine(t, reason, nil))
	}
	_, failed := r.failure() // it may still be what the last probe found
	return !failed
}

// full finds out whether a disk without any room explains why nix-daemon failed: it
// cannot open its database then, and says nothing of that.
func (c *checker) full(ctx context.Context, r *report, known *knowledge, conn *sshconn.Conn, f *nixFailure) bool {
	switch f.reason {
	case ReasonDaemonHungUp, ReasonDaemonExited, ReasonDaemonNotRunning, ReasonDaemonNotAnswering, ReasonDaemonRefused:
	default:
		return false
	}
	t := r.target
	m, _ := measure(ctx, t, conn)
	if !m.storeKnown || m.freeBytes > almostNothing {
		return false
	}
	m.enter(&r.facts)
	if known.fitness.thresholds != t.Thresholds {
		known.fitness = fitness{thresholds: t.Thresholds}
	}
	what := []string{"the file system of /nix/store has no room left, so that the Nix daemon cannot work"}
	if reason, said := known.fitness.judge(&m); reason == ReasonDiskPressure {
		what = said
	}
	r.unknown(StepNixAvailable, ReasonStoreFull, messageNix(t, nixFailure{reason: ReasonStoreFull, status: f.status, text: f.text}))
	r.fail(StepMachineFit, ReasonDiskPressure, messageMachine(t, ReasonDiskPressure, what))
	return true
}

// enter notes what was measured.
func (m *measurement) enter(facts *Facts) {
	facts.FreeBytes, facts.StoreBytes, facts.Processors, facts.LoadPercent = 0, 0, 0, 0
	facts.PressureKnown, facts.CPUPressure, facts.MemoryPressure, facts.IOPressure = false, 0, 0, 0
	facts.ClockSkew = m.skew
	if m.storeKnown {
		facts.FreeBytes, facts.StoreBytes = m.freeBytes, m.storeBytes
	}
	if percent, ok := m.loadPercent(); ok {
		facts.Processors, facts.LoadPercent = m.processors, int(percent)
	}
	if m.cpu >= 0 && m.memory >= 0 && m.io >= 0 {
		facts.PressureKnown = true
		facts.CPUPressure, facts.MemoryPressure, facts.IOPressure = int(m.cpu), int(m.memory), int(m.io)
	}
}

// loadPercent is the load in percent of the processors.
func (m *measurement) loadPercent() (float64, bool) {
	if m.load < 0 || m.processors == 0 {
		return 0, false
	}
	return 100 * m.load / float64(m.processors), true
}

// messageMachine is about StepMachineFit. what says in our words which thresholds are
// passed, or what cannot be read.
func messageMachine(t *Target, reason Reason, what []string) string {
	said := strings.Join(what, "; ")
	switch reason {
	case ReasonMachineFit:
		return t.says("disk, load and clock are within spec.thresholds")
	case ReasonDiskPressure:
		return t.says("%s. Free some with \"nix-collect-garbage -d\" there, have Nix do so by itself (min-free and max-free in its nix.conf), or lower spec.thresholds.minFreeSpace", said)
	case ReasonOverloaded:
		return t.says("%s. Lower maxJobs, find out what else runs there, or raise the threshold in spec.thresholds", said)
	case ReasonClockSkewed:
		return t.says("%s. Have it set by a time service there (chrony, systemd-timesyncd; macOS: sntp -sS), or look at the clock of the operator's node where several machines are said to be wrong", said)
	}
	if said != "" {
		return t.says("the machine does not tell %s", strings.Join(what, ", "))
	}
	return t.says("the machine cannot be measured: only nix-daemon can be run there, or the login shell of %s or its tools are unusual ones", t.User)
}
