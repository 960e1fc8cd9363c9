// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package figures

import (
	"cmp"
	"maps"
	"slices"
)

// Stats sums up samples.
type Stats struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Runs is the number of samples.
	Runs    int       `json:"runs"`
	Samples []float64 `json:"samples"`
}

// Summarize returns the statistics of at least one sample. The median of an even
// number of samples is the mean of the two in the middle.
func Summarize(samples []float64) Stats {
	sorted := slices.Sorted(slices.Values(samples))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + sorted[middle]) / 2
	}
	return Stats{Median: median, Min: sorted[0], Max: sorted[len(sorted)-1], Runs: len(sorted), Samples: samples}
}

// worst returns the Nix version with the worst median; of several, that with the
// worst sample, and of several, the oldest.
func worst(all map[string]Stats, lowerIsBetter bool) string {
	versions := slices.SortedFunc(maps.Keys(all), CompareNix)
	return slices.MaxFunc(versions, func(a, b string) int {
		x, y := all[a], all[b]
		if lowerIsBetter {
			return cmp.Or(cmp.Compare(x.Median, y.Median), cmp.Compare(x.Max, y.Max))
		}
		return cmp.Or(cmp.Compare(y.Median, x.Median), cmp.Compare(y.Min, x.Min))
	})
}
