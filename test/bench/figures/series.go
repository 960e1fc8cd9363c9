// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package figures turns what the benchmark measured into its figures, and both
// into bench.json, a table for the documentation and plots.
//
// All that was measured is kept as series, one for each scenario, Nix version and
// way. Figures are computed from series and from nothing else, so a bench.json that
// was put together from several runs is consistent.
package figures

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Ways of a series.
const (
	// Direct is ssh-ng with OpenSSH, from the client to the builder.
	Direct = "direct"
	// Floor is a helper and a socket of the builder's nix-daemon, without ssh.
	Floor = "floor"
	// Dispatcher is the dispatcher.
	Dispatcher = "dispatcher"
	// Bound is what no way can do better.
	Bound = "bound"
	// Process is the part of the dispatcher's process, in series of processor time.
	Process = "process"
)

// CPU begins the names of series with the machine's processor time, in seconds,
// during a scenario.
const CPU = "cpu_"

// MostRunning begins the names of series with the most builds seen at once on a
// builder during the makespan; the number of its slots follows.
const MostRunning = "most_running_slots"

// AnyNix stands for the Nix version of what has nothing to do with Nix.
const AnyNix = "any"

// Series holds samples by scenario, Nix version and way. Samples of the same index
// belong to the same round.
type Series map[string]map[string]map[string][]float64

// Add appends a sample.
func (s Series) Add(scenario, nix, way string, sample float64) {
	if s[scenario] == nil {
		s[scenario] = map[string]map[string][]float64{}
	}
	if s[scenario][nix] == nil {
		s[scenario][nix] = map[string][]float64{}
	}
	s[scenario][nix][way] = append(s[scenario][nix][way], sample)
}

// Of returns the samples of a way by Nix version; those without any are left out.
func (s Series) Of(scenario, way string) map[string][]float64 {
	found := map[string][]float64{}
	for nix, ways := range s[scenario] {
		if samples := ways[way]; len(samples) > 0 {
			found[nix] = samples
		}
	}
	return found
}

// Ratio returns numerator / denominator of every round by Nix version.
func (s Series) Ratio(scenario, numerator, denominator string) map[string][]float64 {
	ratios := map[string][]float64{}
	for nix, ways := range s[scenario] {
		above, below := ways[numerator], ways[denominator]
		for i := range min(len(above), len(below)) {
			if below[i] > 0 {
				ratios[nix] = append(ratios[nix], above[i]/below[i])
			}
		}
	}
	return ratios
}

// Merge returns the series of both; scenarios of newer replace those of the same
// Nix version.
func (s Series) Merge(newer Series) Series {
	merged := Series{}
	for _, each := range []Series{s, newer} {
		for scenario, versions := range each {
			for nix, ways := range versions {
				if merged[scenario] == nil {
					merged[scenario] = map[string]map[string][]float64{}
				}
				merged[scenario][nix] = ways
			}
		}
	}
	return merged
}

// CompareNix orders versions of Nix, the oldest first.
func CompareNix(a, b string) int {
	return slices.CompareFunc(strings.Split(a, "."), strings.Split(b, "."), func(x, y string) int {
		m, errX := strconv.Atoi(x)
		n, errY := strconv.Atoi(y)
		if errX != nil || errY != nil {
			return cmp.Compare(x, y)
		}
		return cmp.Compare(m, n)
	})
}
