// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package figures

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSummarize(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		samples []float64
		want    Stats
	}{
		"one":          {samples: []float64{3}, want: Stats{Median: 3, Min: 3, Max: 3, Runs: 1, Samples: []float64{3}}},
		"odd number":   {samples: []float64{9, 1, 2}, want: Stats{Median: 2, Min: 1, Max: 9, Runs: 3, Samples: []float64{9, 1, 2}}},
		"even number":  {samples: []float64{4, 1, 9, 2}, want: Stats{Median: 3, Min: 1, Max: 9, Runs: 4, Samples: []float64{4, 1, 9, 2}}},
		"equal values": {samples: []float64{0, 0}, want: Stats{Median: 0, Min: 0, Max: 0, Runs: 2, Samples: []float64{0, 0}}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, Summarize(tc.samples)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWorst(t *testing.T) {
	t.Parallel()
	all := map[string]Stats{
		"2.8.0":  {Median: 2, Min: 1, Max: 3},
		"2.26.3": {Median: 2, Min: 0, Max: 4},
		"2.34.8": {Median: 1, Min: 1, Max: 9},
	}
	if got := worst(all, true); got != "2.26.3" {
		t.Errorf("where less is better the worst is %s, want that with the greater maximum of the two with the greatest median", got)
	}
	if got := worst(all, false); got != "2.34.8" {
		t.Errorf("where more is better the worst is %s, want that with the least median", got)
	}
	same := map[string]Stats{"2.26.3": {}, "2.8.0": {}}
	if got := worst(same, true); got != "2.8.0" {
		t.Errorf("of equal versions the worst is %s, want the oldest", got)
	}
}

func TestCompareNix(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		a, b string
		want int
	}{
		"by numbers":  {a: "2.8.0", b: "2.26.3", want: -1},
		"equal":       {a: "2.8.0", b: "2.8.0", want: 0},
		"longer":      {a: "2.8.0", b: "2.8", want: 1},
		"not numbers": {a: "any", b: "2.8.0", want: 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := CompareNix(tc.a, tc.b); got != tc.want {
				t.Errorf("CompareNix(%s, %s) = %d, want %d", tc.a, tc.b, got, tc.want)
			}
		})
	}
}
