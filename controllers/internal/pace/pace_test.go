// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package pace

import (
	"testing"
	"time"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestWait(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		writes []time.Duration // after start
		at     time.Duration
		inARow int
		want   time.Duration
	}{
		"never written":                   {inARow: 1},
		"just written":                    {writes: []time.Duration{0}, inARow: 1, want: 5 * time.Second},
		"a moment later":                  {writes: []time.Duration{0}, at: 2 * time.Second, inARow: 1, want: 3 * time.Second},
		"long ago":                        {writes: []time.Duration{0}, at: time.Minute, inARow: 1},
		"the second in a row":             {writes: []time.Duration{0}, inARow: 3},
		"the third in a row":              {writes: []time.Duration{0, 0}, inARow: 3},
		"the fourth in a row":             {writes: []time.Duration{0, 0, 0}, inARow: 3, want: 5 * time.Second},
		"the fourth after a pause":        {writes: []time.Duration{0, 0, 0}, at: 4 * time.Second, inARow: 3, want: time.Second},
		"a pause counts once":             {writes: []time.Duration{0, time.Hour, time.Hour, time.Hour}, at: time.Hour, inARow: 3, want: 5 * time.Second},
		"not urgent after urgent ones":    {writes: []time.Duration{0, 0, 0}, inARow: 1, want: 15 * time.Second},
		"the clock was set back":          {writes: []time.Duration{time.Hour, time.Hour}, inARow: 1},
		"written since it was set back":   {writes: []time.Duration{time.Hour, 0}, inARow: 1, want: 5 * time.Second},
		"nothing of it is owed after all": {writes: []time.Duration{time.Hour, time.Hour, 0}, inARow: 1, want: 5 * time.Second},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := New(5 * time.Second)
			for _, at := range tc.writes {
				p.Note("x", start.Add(at))
			}
			if got := p.Wait("x", start.Add(tc.at), tc.inARow); got != tc.want {
				t.Errorf("Wait() = %v, want %v", got, tc.want)
			}
			if got := p.Wait("y", start, 1); got != 0 {
				t.Errorf("another object waits for %v", got)
			}
			p.Forget("x")
			if got := p.Wait("x", start, 1); got != 0 {
				t.Errorf("after it was forgotten it waits for %v", got)
			}
		})
	}
}

// Whoever writes whenever it is allowed keeps the pace.
func TestPaceOfOneThatNeverRests(t *testing.T) {
	t.Parallel()
	p := New(5 * time.Second)
	writes := 0
	for now := start; now.Before(start.Add(10 * time.Minute)); now = now.Add(time.Second) {
		if p.Wait("x", now, 3) == 0 {
			p.Note("x", now)
			writes++
		}
	}
	if writes < 120 || writes > 122 {
		t.Errorf("%d writes in ten minutes, want one in five seconds and two more", writes)
	}
}
