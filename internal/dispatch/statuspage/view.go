// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package statuspage

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"
)

// view is a [Document] with what only the page needs.
type view struct {
	Document
	// Refresh is in how many seconds the page is loaded again; 0 for never.
	Refresh int
	// Healthy and Cordoned are numbers of builders, Slots and Used sums over the
	// healthy ones, Orphaned over all.
	Healthy, Cordoned, Slots, Used, Orphaned int
	// Longest is how long the build that waits longest has waited.
	Longest time.Duration
	// MoreRunning and MoreWaiting are builds for which the tables have no room.
	MoreRunning, MoreWaiting int
}

func newView(d Document, refresh bool) view {
	v := view{Document: d}
	if refresh {
		v.Refresh = refreshSeconds
	}
	for _, b := range d.Builders {
		v.Orphaned += b.Orphaned
		switch b.State {
		case StateHealthy:
			v.Healthy++
			v.Slots += b.Slots
			v.Used += b.Used
		case StateCordoned:
			v.Cordoned++
		}
	}
	for _, b := range d.Waiting {
		v.Longest = max(v.Longest, d.Time.Sub(b.PhaseSince))
	}
	v.Running, v.MoreRunning = firstRows(d.Running)
	v.Waiting, v.MoreWaiting = firstRows(d.Waiting)
	return v
}

func firstRows(builds []Build) (shown []Build, more int) {
	n := min(len(builds), maxRows)
	return builds[:n], len(builds) - n
}

// Since is how long ago t was, for people.
func (v view) Since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return duration(v.Time.Sub(t))
}

// Clock is the time of day of t, with the date if that is another day.
func (v view) Clock(t time.Time) string {
	t, now := t.In(v.Time.Location()), v.Time
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04")
	}
	return t.Format("Jan 2 15:04")
}

// Trouble is how many builders cannot be used.
func (v view) Trouble() int { return len(v.Builders) - v.Healthy - v.Cordoned }

// functions are those of the template.
var functions = template.FuncMap{
	"duration":   duration,
	"bytes":      bytesText,
	"join":       func(list []string) string { return strings.Join(list, ", ") },
	"pips":       pips,
	"pipsWidth":  pipsWidth,
	"pipsHeight": pipsHeight,
	"why":        why,
	"add":        func(a, b int) int { return a + b },
	"steps":      steps,
	"percent":    percent,
	"hash":       hashPart,
	"features":   features,
	"plural":     plural,
}

// duration rounds to what matters at that length: "8 s", "3 min 12 s", "2 h 5 min",
// "3 d 4 h".
func duration(d time.Duration) string {
	d = max(d, 0)
	parts := []struct {
		unit string
		size time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}}
	for i, p := range parts[:3] {
		if d < p.size {
			continue
		}
		text := fmt.Sprintf("%d %s", d/p.size, p.unit)
		if rest := d % p.size / parts[i+1].size; rest > 0 {
			text += fmt.Sprintf(" %d %s", rest, parts[i+1].unit)
		}
		return text
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

// bytesText is a size with a binary prefix: "1.2 GiB".
func bytesText(n int64) string {
	value, unit := float64(n), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, next
	}
	if unit == "B" || value >= 100 || value == float64(int64(value)) {
		return fmt.Sprintf("%.0f %s", value, unit)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

// pip is one slot, or several of a kind, as it is drawn.
type pip struct {
	// Kind is used, orphaned or free.
	Kind string
	// X, Y and Width place it, in the units of the drawing.
	X, Y, Width int
}

// Sizes of the drawing of slots.
const (
	pipsPerRow = 16
	pipStep    = 11
	pipGap     = 2
	// maxPips is the number of slots that are drawn one by one.
	maxPips = 2 * pipsPerRow
)

// pips draws the slots of a builder, used ones first. More than maxPips become one
// bar. A builder that has lost slots while it used them shows all that are used.
func pips(b Builder) []pip {
	n := max(b.Slots, b.Used)
	kinds := []struct {
		name  string
		until int
	}{{"used", b.Used - b.Orphaned}, {"orphaned", b.Used}, {"free", n}}
	var drawn []pip
	at := 0
	for _, kind := range kinds {
		if n > maxPips {
			const width = pipsPerRow * pipStep
			x := at * width / n
			if w := kind.until*width/n - x - pipGap; w > 0 {
				drawn = append(drawn, pip{Kind: kind.name, X: x, Width: w})
			}
			at = kind.until
			continue
		}
		for ; at < kind.until; at++ {
			drawn = append(drawn, pip{Kind: kind.name, X: at % pipsPerRow * pipStep, Y: at / pipsPerRow * pipStep, Width: pipStep - pipGap})
		}
	}
	return drawn
}

// pipsWidth and pipsHeight are the size of a drawing.
func pipsWidth(drawn []pip) int {
	width := 0
	for _, p := range drawn {
		width = max(width, p.X+p.Width)
	}
	return width
}

func pipsHeight(drawn []pip) int { return drawn[len(drawn)-1].Y + pipStep - pipGap }

// phases are those of a build that has a builder, in order.
var phases = []string{"Uploading", "Building", "Answering", "Returning"}

// step is one phase as it is drawn.
type step struct {
	// Kind is done, now or next.
	Kind string
	X    int
}

// stepWidth is the width of a phase with its gap.
const stepWidth = 13

// steps draws how far a build has come.
func steps(phase string) []step {
	at := slices.Index(phases, phase)
	drawn := make([]step, len(phases))
	for i := range drawn {
		kind := "next"
		switch {
		case i < at:
			kind = "done"
		case i == at:
			kind = "now"
		}
		drawn[i] = step{Kind: kind, X: i * stepWidth}
	}
	return drawn
}

// percent is part of whole in hundredths, between 0 and 100.
func percent(part, whole int64) int64 {
	if whole <= 0 {
		return 0
	}
	return min(max(part*100/whole, 0), 100)
}

// hashPart is the beginning of a store path's hash, enough to tell builds of one
// name apart.
func hashPart(path string) string {
	base := path[strings.LastIndexByte(path, '/')+1:]
	hash, _, found := strings.Cut(base, "-")
	if !found {
		return ""
	}
	return hash[:min(len(hash), 8)]
}

// features are a builder's, sorted, mandatory ones marked.
func features(b Builder) []string {
	var all []string
	for _, f := range b.SupportedFeatures {
		if !slices.Contains(b.MandatoryFeatures, f) {
			all = append(all, f)
		}
	}
	for _, f := range b.MandatoryFeatures {
		all = append(all, f+" (mandatory)")
	}
	slices.Sort(all)
	return all
}

// plural is a number with its noun.
func plural(n int, one, many string) string {
	return fmt.Sprintf("%d %s", n, cmp.Or(map[bool]string{n == 1: one}[true], many))
}

// why leaves out of a waiting line what the build needs, which has its own column:
// "3 ahead, 8/8 slots busy".
func why(line string) string {
	if _, reasons, found := strings.Cut(line, ": "); found && strings.HasPrefix(line, "waiting for ") {
		return reasons
	}
	return line
}
