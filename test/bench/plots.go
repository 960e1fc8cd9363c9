// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/bench/plot"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// writePlots draws what the document has samples for.
func (r *run) writePlots(dir string, d figures.Document) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	pictures := map[string][]byte{}
	for name, title := range map[string]string{
		"trivial":  "One trivial derivation",
		"parallel": fmt.Sprintf("%d trivial derivations, %d at once", parallelBuilds, parallelSlots),
		"chain":    fmt.Sprintf("Chain of %d derivations", chainLength),
	} {
		scenarios := []scenarioLabel{{name + "_" + loopback.name, "no delay"}, {name + "_" + rtt20.name, "20 ms"}, {name + "_" + rtt80.name, "80 ms"}}
		addBars(pictures, name, title+": seconds (less is better)", "s", d.Series, scenarios, func(seconds float64) float64 { return seconds })
	}
	size := float64(r.options.mebibytes)
	addBars(pictures, "transfer", "Large inputs and outputs: throughput (more is better)", "MiB/s", d.Series,
		[]scenarioLabel{{"upload", "1 GiB up"}, {"download", "1 GiB down"}, {"lossy", "8 up, 80 ms, loss"}},
		func(seconds float64) float64 { return size / seconds })
	for _, version := range nixlab.Versions() {
		if picture := r.drawTimelines(version); picture != nil {
			pictures["makespan-"+suites[version]] = picture
		}
	}
	var failures []error
	for name, picture := range pictures {
		failures = append(failures, os.WriteFile(filepath.Join(dir, name+".svg"), picture, 0o644))
	}
	return errors.Join(failures...)
}

// scenarioLabel names a scenario in a plot.
type scenarioLabel struct{ scenario, label string }

// addBars draws a group of bars for every scenario and Nix version, if there are
// any samples. Convert turns seconds into what is plotted.
func addBars(pictures map[string][]byte, name, title, unit string, series figures.Series, scenarios []scenarioLabel, convert func(float64) float64) {
	bars := plot.Bars{Title: title, Unit: unit, Series: seriesOf(figures.Direct, figures.Floor, figures.Dispatcher)}
	for _, each := range scenarios {
		for _, nix := range slices.SortedFunc(maps.Keys(series[each.scenario]), figures.CompareNix) {
			group := plot.Group{Labels: []string{each.label, "Nix " + nix}}
			for _, way := range bars.Series {
				group.Bars = append(group.Bars, barOf(series[each.scenario][nix][way.Name], convert))
			}
			bars.Groups = append(bars.Groups, group)
		}
	}
	if len(bars.Groups) > 0 {
		pictures[name] = bars.SVG()
	}
}

// seriesOf gives every way the colour that it has in all plots.
func seriesOf(ways ...string) []plot.Series {
	colours := map[string]plot.Colour{figures.Direct: plot.Grey, figures.Floor: plot.Light, figures.Dispatcher: plot.Dark}
	var all []plot.Series
	for _, way := range ways {
		all = append(all, plot.Series{Name: way, Colour: colours[way]})
	}
	return all
}

func barOf(samples []float64, convert func(float64) float64) *plot.Bar {
	if len(samples) == 0 {
		return nil
	}
	converted := make([]float64, len(samples))
	for i, sample := range samples {
		converted[i] = convert(sample)
	}
	stats := figures.Summarize(converted)
	return &plot.Bar{Median: stats.Median, Min: stats.Min, Max: stats.Max}
}

// drawTimelines shows what ran on every builder by each way; nil if this run has not
// measured it.
func (r *run) drawTimelines(version nixlab.Version) []byte {
	var steps plot.Steps
	for _, slots := range makespanSlots() {
		steps.Panels = append(steps.Panels, plot.Panel{Title: fmt.Sprintf("builder of %d", slots), Limit: float64(slots)})
	}
	for _, way := range seriesOf(figures.Direct, figures.Dispatcher) {
		for _, t := range r.timelines {
			if t.version != version || t.way != way.Name {
				continue
			}
			steps.Title = fmt.Sprintf("Builds running on each builder, %d clients with Nix %s", makespanClients, t.nix)
			steps.Series = append(steps.Series, way)
			for i := range steps.Panels {
				steps.Panels[i].Lines = append(steps.Panels[i].Lines, t.busy.line(i))
			}
		}
	}
	if len(steps.Series) == 0 {
		return nil
	}
	return steps.SVG()
}

// line is the busyness of one builder.
func (b *busyness) line(builder int) plot.Line {
	var line plot.Line
	for i, at := range b.times {
		line.Seconds = append(line.Seconds, at.Seconds())
		line.Counts = append(line.Counts, float64(b.running[i][builder]))
	}
	return line
}
