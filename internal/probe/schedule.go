// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"time"
)

// When probes happen. An endpoint is probed once per interval, counted from start to
// start. Failing changes nothing until it is unhealthy; then it is looked at again
// soon, in case the outage was a short one, and less and less often, but never more
// than an interval after the last time: so a builder that is back is found within one.
// After a refused login it is left alone for longer: OpenSSH adds five
// seconds of penalty for each and from fifteen on turns the whole source address
// away, healthy endpoints behind it included. A change of the target ends all waiting.
const (
	// jitter is by how much of it an interval varies, so that endpoints do not
	// fall into step.
	jitter = 0.1
	// firstRetry is the part of an interval after which an endpoint that has just
	// become unhealthy is probed again; each further time the wait doubles.
	firstRetry = 8
	// longestRetry is the part of an interval, in percent, that the wait grows to.
	// With jitter, probe and publication that makes less than one interval from the
	// return of a builder to its being listed.
	longestRetry = 80
	// minRetry bounds that from below.
	minRetry = time.Second
	// refusedRetry is the wait after the first refused login; each further one
	// doubles it, up to maxRefusedRetry. Intervals longer than these prevail.
	refusedRetry    = time.Minute
	maxRefusedRetry = 10 * time.Minute
)

// wait is the time from the start of a probe to the next one's.
func wait(interval time.Duration, state State, counts streaks) time.Duration {
	switch {
	case counts.refused > 0:
		return max(interval, double(refusedRetry, counts.refused-1, maxRefusedRetry))
	case state == StateUnhealthy:
		longest := interval * longestRetry / 100
		return min(longest, max(minRetry, double(interval/firstRetry, counts.unlisted-1, longest)))
	default:
		return interval
	}
}

// double returns d doubled n times, at most limit.
func double(d time.Duration, n int, limit time.Duration) time.Duration {
	for range n {
		if d >= limit {
			break
		}
		d *= 2
	}
	return min(d, limit)
}

// vary spreads a wait evenly over ±jitter; random is from [0, 1).
func vary(d time.Duration, random float64) time.Duration {
	return time.Duration(float64(d) * (1 - jitter + 2*jitter*random))
}

// agenda is a heap of endpoints by when they are due.
type agenda []*endpoint

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].due.Before(a[j].due) }

func (a agenda) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i, j
}

// Push is for container/heap.
func (a *agenda) Push(x any) {
	e := x.(*endpoint)
	e.place = len(*a)
	*a = append(*a, e)
}

// Pop is for container/heap.
func (a *agenda) Pop() any {
	last := len(*a) - 1
	e := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	e.place = notQueued
	return e
}

// notQueued is the place of an endpoint that is not on the agenda: it is being
// probed, or was forgotten.
const notQueued = -1
