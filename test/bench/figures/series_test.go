// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package figures

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seriesOf makes series of one scenario and version.
func seriesOf(scenario, nix string, ways map[string][]float64) Series {
	s := Series{}
	for way, samples := range ways {
		for _, sample := range samples {
			s.Add(scenario, nix, way, sample)
		}
	}
	return s
}

func TestRatio(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		ways map[string][]float64
		want map[string][]float64
	}{
		"round by round": {
			ways: map[string][]float64{Direct: {2, 4}, Dispatcher: {1, 3}},
			want: map[string][]float64{"2.8.0": {0.5, 0.75}},
		},
		"a round that was not finished does not count": {
			ways: map[string][]float64{Direct: {2}, Dispatcher: {1, 3}},
			want: map[string][]float64{"2.8.0": {0.5}},
		},
		"nothing to divide by": {ways: map[string][]float64{Direct: {0}, Dispatcher: {1}}, want: map[string][]float64{}},
		"one way only":         {ways: map[string][]float64{Dispatcher: {1}}, want: map[string][]float64{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := seriesOf("trivial", "2.8.0", tc.ways).Ratio("trivial", Dispatcher, Direct)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMergeSeries(t *testing.T) {
	t.Parallel()
	older := seriesOf("trivial", "2.8.0", map[string][]float64{Direct: {1}, Floor: {2}})
	older.Add("trivial", "2.26.3", Direct, 3)
	older.Add("upload", "2.8.0", Direct, 4)
	newer := seriesOf("trivial", "2.8.0", map[string][]float64{Direct: {5, 6}})
	newer.Add("chain", "2.8.0", Direct, 7)

	want := Series{
		// Rounds of two runs are not mixed: what was measured again is replaced whole.
		"trivial": {"2.8.0": {Direct: {5, 6}}, "2.26.3": {Direct: {3}}},
		"upload":  {"2.8.0": {Direct: {4}}},
		"chain":   {"2.8.0": {Direct: {7}}},
	}
	if diff := cmp.Diff(want, older.Merge(newer)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCompute(t *testing.T) {
	t.Parallel()
	series := seriesOf("trivial_loopback", "2.8.0", map[string][]float64{Direct: {1, 1}, Floor: {0.2, 0.2}, Dispatcher: {0.4, 0.3}})
	series.Add("trivial_loopback", "2.34.8", Direct, 1)
	series.Add("trivial_loopback", "2.34.8", Dispatcher, 0.5)
	series.Add("upload", "2.8.0", Direct, 20)
	series.Add("upload", "2.8.0", Dispatcher, 10)
	series.Add("makespan", "2.8.0", Bound, 30)
	series.Add("makespan", "2.8.0", Dispatcher, 33)
	series.Add("placements", AnyNix, Dispatcher, 5000)
	got := Compute(series)

	for name, want := range map[string]struct {
		median  float64
		nix     string
		reached bool
	}{
		"trivial_loopback_ratio": {median: 0.5, nix: "2.34.8", reached: false},
		"trivial_floor_ratio":    {median: 1.75, nix: "2.8.0", reached: false},
		"upload_ratio":           {median: 2, nix: "2.8.0", reached: true}, // half of the time is twice the throughput
		"makespan_ratio":         {median: 1.1, nix: "2.8.0", reached: true},
	} {
		f := got[name]
		if f.Nix != want.nix || f.Reached == nil || *f.Reached != want.reached || f.Median-want.median > 1e-9 || want.median-f.Median > 1e-9 {
			t.Errorf("%s = %v of Nix %s, want %v of %s, reached %v", name, f.Median, f.Nix, want.median, want.nix, want.reached)
		}
	}
	if len(got["trivial_loopback_ratio"].ByNix) != 2 {
		t.Error("a figure does not tell of every Nix version")
	}
	if f := got["placements_per_second"]; f.Median != 5000 || f.Reached != nil {
		t.Errorf("placements_per_second = %v, want 5000 without a goal", f)
	}
	if _, ok := got["lossy_ratio"]; ok {
		t.Error("there is a figure without samples")
	}
}

// The names are what readers of bench.json rely on.
func TestSpecs(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, spec := range Specs() {
		if seen[spec.Name] || spec.Meaning == "" || spec.Unit == "" || spec.samples == nil {
			t.Errorf("%q is there twice, or incomplete", spec.Name)
		}
		seen[spec.Name] = true
	}
	for _, name := range []string{
		"trivial_loopback_ratio", "trivial_rtt80_ratio", "parallel_loopback_ratio", "chain_rtt80_ratio", "upload_ratio",
		"download_ratio", "lossy_ratio", "transfer_rss_mib", "makespan_ratio", "makespan_stock_ratio", "builds_lost", "kills",
		"slots_exceeded", "failover_closed_seconds", "placements_per_second",
	} {
		if !seen[name] {
			t.Errorf("there is no figure %s", name)
		}
	}
}
