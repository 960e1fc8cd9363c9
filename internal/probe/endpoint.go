// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"container/heap"
	"slices"
	"time"
)

// begin makes an endpoint for a target and puts it on the agenda. Called, like all
// of this file, with the prober's mutex held.
func (p *Prober) begin(builder Key, target Target) *endpoint {
	now := time.Now()
	e := &endpoint{
		key: builder, target: target, due: now, known: knowledge{firstKey: target.PinnedHostKey},
		snapshot: Snapshot{State: StateUnknown, Reason: ReasonNotProbed, Message: messageNotProbed, Since: now},
	}
	if kept := target.Restored; kept != nil && kept.State != StateUnknown && kept.State != "" {
		e.snapshot = restore(*kept)
		e.known.facts = e.snapshot.Result.Facts
		e.known.spoken = hasSpoken(&e.snapshot)
		e.known.fitness = restoredFitness(&e.target, &e.snapshot)
		e.known.canaries = restoredCanaries(&e.target, &e.snapshot, now, p.random())
		if e.snapshot.State == StateUnhealthy {
			e.counts = streaks{failures: target.FailureThreshold, unlisted: 1}
		}
		// All endpoints come back at once when the process starts.
		e.due = now.Add(time.Duration(p.random() * float64(target.Interval)))
	}
	e.wanted = e.snapshot.Requested
	e.target.Restored = nil
	heap.Push(&p.agenda, e)
	return e
}

// retarget takes a new target over for an existing endpoint.
func (p *Prober) retarget(e *endpoint, target Target) {
	old := e.target
	target.Restored = nil
	e.target = target
	now := time.Now()
	if !target.KeepConnection {
		e.keeping.release()
	}
	switch {
	case !sameMachine(&old, &target):
		e.snapshot = Snapshot{State: StateUnknown, Reason: ReasonNotProbed, Message: messageNotProbed, Since: now}
		e.known = knowledge{firstKey: target.PinnedHostKey}
		e.keeping.release()
		e.keeping = keeping{}
	case target.PinnedHostKey != "" && target.PinnedHostKey != e.known.firstKey:
		// The key that the prober itself pinned comes back here too, unchanged.
		e.known.firstKey = target.PinnedHostKey
	case !sameCredentials(&old, &target):
	case !sameExpectations(&old, &target):
		doubted := []Step{StepSystemsVerified}
		if old.Thresholds != target.Thresholds {
			doubted = append(doubted, StepMachineFit)
		}
		e.snapshot.Result.Outcomes = unverified(e.snapshot.Result.Outcomes, doubted...)
	default:
		// At most the pace has changed: the current wait may be too long now.
		if e.place != notQueued && old.Interval != target.Interval {
			e.due = earlier(e.due, now.Add(vary(target.Interval, p.random())))
			heap.Fix(&p.agenda, e.place)
		}
		return
	}
	e.counts = streaks{}
	e.revision++
	e.due = now
	if e.cancel != nil {
		e.cancel() // its end starts the next one
		return
	}
	heap.Fix(&p.agenda, e.place)
}

// hasSpoken tells whether an SSH server has answered there, as far as a kept
// snapshot knows.
func hasSpoken(kept *Snapshot) bool {
	return !kept.LastHealthy.IsZero() || kept.Result.Facts.HostKey != "" || kept.Reason == ReasonSSHStopped ||
		kept.Result.Outcome(StepReachable).Status == StatusTrue
}

// unverified returns outcomes without what was found out about the given steps, which
// was by other measures.
func unverified(outcomes []Outcome, steps ...Step) []Outcome {
	outcomes = slices.Clone(outcomes)
	for i, outcome := range outcomes {
		if slices.Contains(steps, outcome.Step) && outcome.Reason != ReasonNotReached {
			outcomes[i] = Outcome{Step: outcome.Step, Status: StatusUnknown, Reason: ReasonNotProbed, Message: messageNotProbed}
		}
	}
	return outcomes
}

// forget takes an endpoint off the agenda and ends its probe.
func (p *Prober) forget(e *endpoint) {
	e.forgotten = true
	e.keeping.release()
	if e.cancel != nil {
		e.cancel()
	}
	if e.place != notQueued {
		heap.Remove(&p.agenda, e.place)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
