// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"slices"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// report collects what a probe finds out.
type report struct {
	target   *Target
	hop      *hop // nil where there is no jump host
	outcomes []Outcome
	facts    Facts
	watch    stopwatch
}

// stopwatch counts how long each step takes. Time between laps belongs to the step
// that is reported next; laps are for what several steps are done in one go.
type stopwatch struct {
	mu    sync.Mutex
	since time.Time
	taken map[Step]time.Duration
}

// start begins counting anew; what passed since the last lap belongs to no step.
func (w *stopwatch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
}

// lap adds the time since the last lap to a step. It does nothing before start.
func (w *stopwatch) lap(step Step) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since.IsZero() {
		return
	}
	if w.taken == nil {
		w.taken = map[Step]time.Duration{}
	}
	now := time.Now()
	w.taken[step] += now.Sub(w.since)
	w.since = now
}

// passed notes that the SSH connection has got as far as the step given.
func (w *stopwatch) passed(step sshconn.Step) {
	switch step {
	case sshconn.StepLogin:
		w.lap(StepHostKeyVerified)
	case sshconn.StepEstablished:
		w.lap(StepAuthenticated)
	}
}

// took returns the time of each step that was reached, in the order of outcomes.
func (r *report) took(outcomes []Outcome) []time.Duration {
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	all := make([]time.Duration, len(outcomes))
	for i, outcome := range outcomes {
		if outcome.Reason != ReasonNotReached {
			all[i] = r.watch.taken[outcome.Step]
		}
	}
	return all
}

func (r *report) add(step Step, status Status, reason Reason, message string) {
	r.watch.lap(step)
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

// failure is the first failure so far that takes the endpoint out of use.
func (r *report) failure() (Outcome, bool) {
	so := Result{Outcomes: r.outcomes}
	return so.Failure()
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
