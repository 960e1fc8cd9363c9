// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"slices"
	"testing"
	"time"
)

func TestWait(t *testing.T) {
	t.Parallel()
	const interval = 32 * time.Second
	tests := map[string]struct {
		interval time.Duration
		reason   Reason
		want     []time.Duration // after each failure in a row, with a threshold of 3
	}{
		"failures": {
			reason: ReasonConnectTimeout,
			want: []time.Duration{
				interval, interval, // still below the threshold
				interval / 8, interval / 4, interval / 2, interval * 4 / 5, interval * 4 / 5,
			},
		},
		"at once": {
			reason: ReasonHostKeyChanged,
			want:   []time.Duration{interval / 8, interval / 4, interval / 2, interval * 4 / 5, interval * 4 / 5},
		},
		"refused logins": {
			reason: ReasonAuthRefused,
			want: []time.Duration{
				time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute, 10 * time.Minute,
			},
		},
		"refused logins, long interval": {
			interval: time.Hour, reason: ReasonAuthRefused, want: []time.Duration{time.Hour, time.Hour},
		},
		"short interval": {
			interval: 2 * time.Second, reason: ReasonHostKeyChanged,
			want: []time.Duration{time.Second, time.Second, time.Second, 1600 * time.Millisecond},
		},
		"shorter than the minimum": {
			interval: 100 * time.Millisecond, reason: ReasonHostKeyChanged,
			want: []time.Duration{80 * time.Millisecond, 80 * time.Millisecond},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.interval == 0 {
				tc.interval = interval
			}
			var got []time.Duration
			snapshot, counts := Snapshot{State: StateHealthy}, streaks{}
			for range tc.want {
				snapshot, counts = observe(snapshot, counts, failed(tc.reason), 3, time.Now())
				got = append(got, wait(tc.interval, snapshot.State, counts))
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got  %v\nwant %v", got, tc.want)
			}
		})
	}
}

// failed is a result that failed for a reason.
func failed(reason Reason) Result {
	entry, ok := entryOf(reason)
	if !ok {
		panic("unknown reason " + reason)
	}
	r := report{}
	r.fail(entry.Step, reason, "it is "+string(reason))
	return Result{Outcomes: r.complete()}
}

// passed is a result without failure.
func passed() Result {
	r := report{}
	for _, step := range Steps() {
		r.pass(step, passedReason(step), "fine")
	}
	return Result{Outcomes: r.complete()}
}

func TestVary(t *testing.T) {
	t.Parallel()
	for random, want := range map[float64]time.Duration{
		0: 27 * time.Second, 0.5: 30 * time.Second, 1: 33 * time.Second,
	} {
		if got := vary(30*time.Second, random).Round(time.Millisecond); got != want {
			t.Errorf("with %v: %v, want %v", random, got, want)
		}
	}
}
