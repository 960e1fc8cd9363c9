// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package statuspage

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDuration(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 0: "0 s", 900 * time.Millisecond: "0 s", 59 * time.Second: "59 s", time.Minute: "1 min",
		83 * time.Second: "1 min 23 s", time.Hour: "1 h", 65*time.Minute + 40*time.Second: "1 h 5 min", 51 * time.Hour: "2 d 3 h",
	} {
		if got := duration(d); got != want {
			t.Errorf("duration(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 30: "10 GiB", 1932735283: "1.8 GiB", 300<<20 + 1<<19: "300 MiB", 5 << 50: "5120 TiB",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestPips(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		slots, used, orphaned int
		want                  string
	}{
		"none":                    {0, 0, 0, ""},
		"free":                    {3, 0, 0, "fff"},
		"some of each":            {5, 3, 1, "uuoff"},
		"slots taken away in use": {1, 3, 0, "uuu"},
		"too many to draw each":   {330, 40, 20, "uof"},
		"too few of many to see":  {330, 1, 0, "f"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got strings.Builder
			for _, p := range pips(Builder{Slots: tc.slots, Used: tc.used, Orphaned: tc.orphaned}) {
				got.WriteByte(p.Kind[0])
			}
			if got.String() != tc.want {
				t.Errorf("pips %q, want %q", got.String(), tc.want)
			}
		})
	}
	rows := pips(Builder{Slots: 20})
	if last := rows[19]; last.X != 3*pipStep || last.Y != pipStep {
		t.Errorf("the last of 20 is at %d, %d", last.X, last.Y)
	}
}

func TestSteps(t *testing.T) {
	t.Parallel()
	for phase, want := range map[string][]string{
		"Uploading": {"now", "next", "next", "next"}, "Answering": {"done", "done", "now", "next"}, "Unheard": {"next", "next", "next", "next"},
	} {
		var got []string
		for _, s := range steps(phase) {
			got = append(got, s.Kind)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("steps of %s (-want +got):\n%s", phase, diff)
		}
	}
}

func TestHashPart(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a.drv": "01234567", "a-b": "a", "/nix/store/x": "", "": "",
	} {
		if got := hashPart(path); got != want {
			t.Errorf("hashPart(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestClock(t *testing.T) {
	t.Parallel()
	v := view{Document: Document{Time: moment}}
	if got := v.Clock(moment.Add(-14 * time.Hour)); got != "00:02" {
		t.Errorf("the same day: %q", got)
	}
	if got := v.Clock(moment.Add(-15 * time.Hour)); got != "Aug 2 23:02" {
		t.Errorf("the day before: %q", got)
	}
}
