// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import "time"

// streaks counts, per endpoint, what has happened in a row.
type streaks struct {
	failures int // probes that failed
	refused  int // of these, logins that were refused
	unlisted int // failures since the endpoint became unhealthy
}

// observe applies a result to what was known: it is the whole of the rules by which
// an endpoint changes its state.
//
//   - A probe that passes makes it healthy.
//   - One that fails makes it suspect; as many in a row as the threshold says make
//     it unhealthy.
//   - Failures that do not heal by waiting (host key, login, trust, version: AtOnce
//     in the catalogue) make it unhealthy at once.
func observe(prev Snapshot, counts streaks, result Result, threshold int, now time.Time) (Snapshot, streaks) {
	next := Snapshot{
		State: StateHealthy, Reason: ReasonAllPassed, Message: messageAllPassed,
		Since: prev.Since, LastHealthy: prev.LastHealthy, Result: result,
	}
	failure, failed := result.Failure()
	if failed {
		next.Reason, next.Message = failure.Reason, failure.Message
		counts, next.State = counts.add(failure.Reason, prev.State, threshold)
	} else {
		counts = streaks{}
		next.LastHealthy = now
	}
	if next.State != prev.State || next.Reason != prev.Reason {
		next.Since = now
	}
	return next, counts
}

// add counts a failure and returns the state it leads to.
func (c streaks) add(reason Reason, state State, threshold int) (streaks, State) {
	c.failures++
	if reason == ReasonAuthRefused || reason == ReasonJumpLoginRefused {
		c.refused++
	} else {
		c.refused = 0
	}
	entry, _ := entryOf(reason)
	if !entry.AtOnce && c.failures < threshold && state != StateUnhealthy {
		return c, StateSuspect
	}
	c.unlisted++
	return c, StateUnhealthy
}

// restore completes a snapshot that was kept outside of this process, where only
// state, reason and message may have been kept: the outcomes follow from them.
func restore(kept Snapshot) Snapshot {
	if len(kept.Result.Outcomes) > 0 || kept.State == StateUnknown || kept.State == "" {
		return kept
	}
	if kept.State == StateHealthy && kept.LastHealthy.IsZero() {
		kept.LastHealthy = kept.Since
	}
	entry, failed := entryOf(kept.Reason)
	if kept.State == StateHealthy {
		failed = false
	}
	r := report{}
	for _, step := range Steps() {
		if failed && step == entry.Step {
			r.fail(step, kept.Reason, kept.Message)
			break
		}
		r.pass(step, passedReason(step), messageRestored)
	}
	kept.Result.Outcomes = r.complete()
	return kept
}

// passedReason is the reason of a step that is true.
func passedReason(step Step) Reason {
	for _, entry := range Catalogue() {
		if entry.Step == step && entry.Status == StatusTrue {
			return entry.Reason
		}
	}
	return ReasonNotProbed
}
