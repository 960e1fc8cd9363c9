// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// machine finds out whether disk, load and clock are within the thresholds. It
// reports whether the builder's systems are worth asking for.
func (c *checker) machine(_ context.Context, r *report, _ *knowledge, _ *sshconn.Conn) bool {
	t := r.target
	if t.Thresholds == (Thresholds{}) {
		r.pass(StepMachineFit, ReasonMachineFit, messageMachine(t, ReasonMachineFit, nil))
		return true
	}
	r.unknown(StepMachineFit, ReasonMachineNotMeasured, messageMachine(t, ReasonMachineNotMeasured, nil))
	return true
}

// messageMachine is about StepMachineFit. what says in our words which thresholds are
// passed.
func messageMachine(t *Target, reason Reason, what []string) string {
	said := strings.Join(what, ", and ")
	switch reason {
	case ReasonMachineFit:
		return t.says("disk, load and clock are within spec.thresholds")
	case ReasonDiskPressure:
		return t.says("%s; free some with \"nix-collect-garbage -d\" there, have Nix do so by itself (min-free and max-free in its nix.conf), or lower spec.thresholds.minFreeSpace", said)
	case ReasonOverloaded:
		return t.says("%s; lower maxJobs, find out what else runs there (top), or raise the threshold", said)
	case ReasonClockSkewed:
		return t.says("%s; have it set by a time service there (chrony, systemd-timesyncd; macOS: sntp), or look at the operator's node if other machines are said to be off, too", said)
	default:
		return t.says("the machine cannot be measured: only nix-daemon can be run there, or the login shell of %s or its tools are unusual ones", t.User)
	}
}
