// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package figures

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Markers of the part of docs/performance.md that the benchmark writes.
const (
	beginMarker = "<!-- begin: written by make bench -->"
	endMarker   = "<!-- end: written by make bench -->"
)

// Replace returns the page with generated text between its markers.
func Replace(page, generated string) (string, error) {
	begin, end := strings.Index(page, beginMarker), strings.Index(page, endMarker)
	if begin < 0 || end < begin {
		return "", fmt.Errorf("the page lacks the lines %q and %q", beginMarker, endMarker)
	}
	return page[:begin+len(beginMarker)] + "\n\n" + strings.TrimSpace(generated) + "\n\n" + page[end:], nil
}

// Markdown returns what the page says of a document: where it was measured, the
// figures, and the times behind the ratios.
func (d Document) Markdown() string {
	var out strings.Builder
	m := d.Machine
	fmt.Fprintf(&out, "Commit %.12s, %s, load %.2f at the start. %d × %s, %d MiB of memory, Linux %s, TCP with %s. %s.\n",
		d.Commit, d.Date.UTC().Format("2006-01-02"), d.Load, m.Cores, m.CPU, m.MemoryMiB, m.Kernel, m.Congestion, d.versions())
	fmt.Fprintf(&out, "Round trips as seen by a TCP connection: %s.\n\n", d.lines())
	out.WriteString(d.figureTable())
	out.WriteString("\n" + d.seriesTable())
	for _, table := range []string{d.tripTable(), d.mostTable()} {
		if table != "" {
			out.WriteString("\n" + table)
		}
	}
	if len(d.KillsPerPhase) > 0 {
		out.WriteString("\nKills by the phase of the build: " + d.phases() + ".\n")
	}
	return out.String()
}

func (d Document) versions() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(d.Versions)) {
		all = append(all, name+" "+d.Versions[name])
	}
	return strings.Join(all, ", ")
}

func (d Document) lines() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(d.Lines)) {
		all = append(all, fmt.Sprintf("%s %s ms", name, number(d.Lines[name])))
	}
	return strings.Join(all, ", ")
}

// phases lists how many builders were killed in which phase of their build.
func (d Document) phases() string {
	var all []string
	for _, phase := range slices.Sorted(maps.Keys(d.KillsPerPhase)) {
		all = append(all, fmt.Sprintf("%s %d", phase, d.KillsPerPhase[phase]))
	}
	return strings.Join(all, ", ")
}

func (d Document) figureTable() string {
	var out strings.Builder
	out.WriteString("| Figure | Median | Least – most | Runs | Nix | Goal | |\n|---|--:|--:|--:|---|--:|---|\n")
	figures := Compute(d.Series)
	for _, spec := range Specs() {
		f, ok := figures[spec.Name]
		if !ok {
			continue
		}
		verdict := ""
		if f.Reached != nil {
			verdict = map[bool]string{true: "reached", false: "**missed**"}[*f.Reached]
		}
		fmt.Fprintf(&out, "| %s<br>`%s` | %s | %s – %s | %d | %s | %s | %s |\n", spec.Meaning, spec.Name,
			number(f.Median), number(f.Min), number(f.Max), f.Runs, f.Nix, f.Goal.text(), verdict)
	}
	return out.String()
}

func (g *Goal) text() string {
	switch {
	case g == nil:
		return ""
	case g.AtMost != nil:
		return "≤ " + number(*g.AtMost)
	default:
		return "≥ " + number(*g.AtLeast)
	}
}

// column is a way in a table.
type column struct{ heading, prefix, way string }

// seriesTable lists the median times of all ways, and what they took of processors.
func (d Document) seriesTable() string {
	columns := []column{
		{"direct", "", Direct}, {"floor", "", Floor}, {"dispatcher", "", Dispatcher}, {"bound", "", Bound},
		{"CPU: direct", CPU, Direct}, {"floor", CPU, Floor}, {"dispatcher", CPU, Dispatcher}, {"its process", CPU, Process},
	}
	var out strings.Builder
	out.WriteString("| Median, s | Nix |")
	for _, c := range columns {
		out.WriteString(" " + c.heading + " |")
	}
	out.WriteString("\n|---|---|" + strings.Repeat("--:|", len(columns)) + "\n")
	for _, scenario := range timed() {
		for _, nix := range slices.SortedFunc(maps.Keys(d.Series[scenario]), CompareNix) {
			fmt.Fprintf(&out, "| %s | %s |", strings.ReplaceAll(scenario, "_", ", "), nix)
			for _, c := range columns {
				cell := ""
				if samples := d.Series[c.prefix+scenario][nix][c.way]; len(samples) > 0 {
					cell = " " + number(Summarize(samples).Median)
				}
				out.WriteString(cell + " |")
			}
			out.WriteString("\n")
		}
	}
	return out.String()
}

// tripTable tells how many round trips of the line a scenario waits for: by how
// much longer it takes on the line of 80 ms than on that of 20 ms.
func (d Document) tripTable() string {
	var rows strings.Builder
	for _, what := range []string{"trivial", "parallel", "chain"} {
		for _, nix := range slices.SortedFunc(maps.Keys(d.Series[what+"_rtt80"]), CompareNix) {
			fmt.Fprintf(&rows, "| %s | %s |", what, nix)
			for _, way := range []string{Direct, Floor, Dispatcher} {
				cell := ""
				long, short := d.Series[what+"_rtt80"][nix][way], d.Series[what+"_rtt20"][nix][way]
				if len(long) > 0 && len(short) > 0 {
					cell = fmt.Sprintf(" %.1f", (Summarize(long).Median-Summarize(short).Median)/0.060)
				}
				rows.WriteString(cell + " |")
			}
			rows.WriteString("\n")
		}
	}
	if rows.Len() == 0 {
		return ""
	}
	return "| Round trips waited for | Nix | direct | floor | dispatcher |\n|---|---|--:|--:|--:|\n" + rows.String()
}

// mostTable tells how many builds ran at once on builders of so many slots.
func (d Document) mostTable() string {
	var rows strings.Builder
	for _, scenario := range slices.Sorted(maps.Keys(d.Series)) {
		slots, ok := strings.CutPrefix(scenario, MostRunning)
		if !ok {
			continue
		}
		for _, nix := range slices.SortedFunc(maps.Keys(d.Series[scenario]), CompareNix) {
			fmt.Fprintf(&rows, "| %s | %s |", slots, nix)
			for _, way := range []string{Direct, Dispatcher} {
				cell := ""
				if samples := d.Series[scenario][nix][way]; len(samples) > 0 {
					cell = " " + number(Summarize(samples).Max)
				}
				rows.WriteString(cell + " |")
			}
			rows.WriteString("\n")
		}
	}
	if rows.Len() == 0 {
		return ""
	}
	return "| Most builds at once: slots of the builder | Nix | direct | dispatcher |\n|--:|---|--:|--:|\n" + rows.String()
}

// timed lists the scenarios whose samples are wall times, in order.
func timed() []string {
	var all []string
	for _, what := range []string{"trivial", "parallel", "chain"} {
		for _, kind := range []string{"loopback", "rtt20", "rtt80"} {
			all = append(all, what+"_"+kind)
		}
	}
	return append(all, "upload", "download", "lossy", "makespan")
}

// number writes three digits, or all before the point.
func number(x float64) string {
	if x == math.Trunc(x) {
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(x)))))
	return strconv.FormatFloat(x, 'f', digits, 64)
}

// Text returns the figures for a terminal.
func (d Document) Text() string {
	var out strings.Builder
	figures := Compute(d.Series)
	for _, spec := range Specs() {
		f, ok := figures[spec.Name]
		if !ok {
			continue
		}
		verdict := ""
		if f.Reached != nil {
			verdict = map[bool]string{true: "reached", false: "MISSED"}[*f.Reached]
		}
		fmt.Fprintf(&out, "%-26s %10s  (%s to %s, %d runs, Nix %s)  %s %s\n", spec.Name, number(f.Median),
			number(f.Min), number(f.Max), f.Runs, f.Nix, f.Goal.text(), verdict)
	}
	return out.String()
}
