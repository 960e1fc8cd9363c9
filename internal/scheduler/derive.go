// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"cmp"
	"slices"
	"sort"
	"strings"
)

const (
	// maxSetsPerGroup bounds the feature sets derived per system and set of
	// mandatory features. The smallest are kept.
	maxSetsPerGroup = 64
	// linesPerSlot and minLines say how many lines a class gets. With as many
	// lines as slots a client with more builds than that would keep the rest in
	// a queue of its own, which it looks at every five seconds only and which
	// gives no reasons. What waits here instead starts at once.
	linesPerSlot = 4
	minLines     = 16
	// topSpeed is the speed factor of a line without features. Clients prefer
	// high factors, so a build takes the line that asks for no more than it
	// needs.
	topSpeed = 100
)

// leftOut are features no class is derived for: builds that require them have
// not been shown to work through a dispatcher.
var leftOut = []string{"ca-derivations", "impure-derivations"}

// Line is a class with the number of lines it gets in a client's machines file.
type Line struct {
	Class Class
	// Count is the number of one-job lines, at least 1. A line is where one
	// build of a client waits or runs; it is not a slot of a builder.
	Count int
	// Speed is the speed factor of these lines. It falls with the number of
	// features.
	Speed int
}

// Lines returns the classes of the given builders, whatever their health, in
// stable order, each with several lines for every slot that the builders that
// serve it have together. The total is at most limit (but at least one per
// class): where it would be more, the classes with most lines give way first.
//
// For every system and distinct set M of mandatory features the feature sets
// are: the empty one, every single feature, every builder's whole set, and the
// intersections of these.
func Lines(builders []Builder, limit int) []Line {
	var lines []Line
	for _, system := range systems(builders) {
		for _, mandatory := range mandatorySets(builders, system) {
			base := NewClass(system, nil, mandatory)
			for _, features := range featureSets(builders, base) {
				class := NewClass(system, features, mandatory)
				lines = append(lines, Line{
					Class: class,
					Count: max(linesPerSlot*slotsOf(builders, class), minLines),
					Speed: max(1, topSpeed-len(class.Features)),
				})
			}
		}
	}
	limitLines(lines, limit)
	return lines
}

// limitLines lowers the highest counts to one level so that the sum is at
// most limit.
func limitLines(lines []Line, limit int) {
	sum := func(level int) (n int) {
		for _, line := range lines {
			n += min(line.Count, level)
		}
		return n
	}
	// The sum grows with the level: the highest one that fits comes right
	// before the first that does not.
	level := sort.Search(limit, func(n int) bool { return sum(n+1) > limit })
	for i := range lines {
		lines[i].Count = max(1, min(lines[i].Count, level))
	}
}

func slotsOf(builders []Builder, class Class) int {
	n := 0
	for i := range builders {
		if builders[i].Serves(class) {
			n += max(builders[i].Slots, 0)
		}
	}
	return n
}

func systems(builders []Builder) []string {
	var all []string
	for _, b := range builders {
		all = append(all, b.Systems...)
	}
	return normalized(all)
}

// mandatorySets returns the distinct sets of mandatory features among builders
// for system.
func mandatorySets(builders []Builder, system string) [][]string {
	var sets [][]string
	for _, b := range builders {
		if !slices.Contains(b.Systems, system) || intersects(b.Mandatory, leftOut) {
			continue
		}
		sets = append(sets, normalized(b.Mandatory))
	}
	return distinct(sets)
}

// featureSets returns the feature sets of the classes with base's system and
// mandatory features, smallest first.
func featureSets(builders []Builder, base Class) [][]string {
	var whole [][]string
	for i := range builders {
		b := &builders[i]
		if !b.Serves(base) {
			continue
		}
		features := normalized(slices.Concat(b.Supported, b.Mandatory))
		whole = append(whole, slices.DeleteFunc(features, func(f string) bool {
			return contains(base.Mandatory, f) || slices.Contains(leftOut, f)
		}))
	}
	sets := [][]string{{}}
	for _, f := range normalized(slices.Concat(whole...)) {
		sets = append(sets, []string{f})
	}
	sets = append(sets, intersections(distinct(whole))...)
	sets = distinct(sets)
	return sets[:min(len(sets), maxSetsPerGroup)]
}

// intersections returns the given sets and what any of them have in common.
// Work is bounded: beyond four times the number of sets kept, no more are made.
func intersections(sets [][]string) [][]string {
	out := slices.Clone(sets)
	for i := 0; i < len(out) && len(out) < 4*maxSetsPerGroup; i++ {
		for _, other := range sets {
			common := slices.DeleteFunc(slices.Clone(out[i]), func(f string) bool { return !contains(other, f) })
			if !slices.ContainsFunc(out, func(s []string) bool { return slices.Equal(s, common) }) {
				out = append(out, common)
			}
		}
	}
	return out
}

// distinct sorts sets by size, then by content, and drops duplicates.
func distinct(sets [][]string) [][]string {
	slices.SortFunc(sets, func(a, b []string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(strings.Join(a, " "), strings.Join(b, " ")))
	})
	return slices.CompactFunc(sets, slices.Equal)
}

func intersects(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
