// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import "slices"

// report collects what a probe finds out.
type report struct {
	target   *Target
	outcomes []Outcome
	facts    Facts
}

func (r *report) add(step Step, status Status, reason Reason, message string) {
	r.outcomes = append(r.outcomes, Outcome{Step: step, Status: status, Reason: reason, Message: clip(message)})
}

func (r *report) pass(step Step, reason Reason, message string) {
	r.add(step, StatusTrue, reason, message)
}

func (r *report) fail(step Step, reason Reason, message string) {
	r.add(step, StatusFalse, reason, message)
}

func (r *report) unknown(step Step, reason Reason, message string) {
	r.add(step, StatusUnknown, reason, message)
}

// complete returns one outcome per step, in order: steps without one were not
// reached.
func (r *report) complete() []Outcome {
	failed := Step("")
	for _, outcome := range r.outcomes {
		if outcome.Status == StatusFalse {
			failed = outcome.Step
		}
	}
	all := make([]Outcome, 0, len(Steps()))
	for _, step := range Steps() {
		i := slices.IndexFunc(r.outcomes, func(o Outcome) bool { return o.Step == step })
		if i >= 0 {
			all = append(all, r.outcomes[i])
			continue
		}
		all = append(all, Outcome{
			Step: step, Status: StatusUnknown, Reason: ReasonNotReached, Message: messageNotReached(failed),
		})
	}
	return all
}
