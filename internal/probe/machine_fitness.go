// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// betterBy is by which part of it a machine has to be better than a threshold that it
// has passed, to be within it again.
const betterBy = 0.2

// fitness is what is remembered of how a machine kept to its thresholds. It is a value
// that is copied with what else is known.
type fitness struct {
	// thresholds are those that the rest is about.
	thresholds Thresholds
	gauges     [gaugeCount]gauge
	// behind: the clock was, when it was last read.
	behind bool
	// last is the outcome of the last probe.
	last Outcome
	// silent is how many times in a row there was no answer, and mute until when the
	// machine is not asked because of that.
	silent int
	mute   time.Time
}

// The gauges, in the order in which they are told.
const (
	gaugeDisk = iota
	gaugeLoad
	gaugeCPU
	gaugeMemory
	gaugeIO
	gaugeClock
	gaugeCount
)

// gauge is what is remembered of one threshold.
type gauge struct {
	// passed: the threshold was passed, and the machine not better by a fifth since.
	passed bool
	// unread is for how many probes in a row that was not confirmed by a figure.
	unread int
	// told is the figure that messages were made from. It is kept while the true
	// one is of the same order, so that messages do not vary. After a restart it is
	// zero until there is a figure.
	told float64
}

func (f *fitness) gauge(i int) *gauge { return &f.gauges[i] }

// reading is a figure and what it is held against.
type reading struct {
	limit float64 // 0: not looked at
	value float64
	known bool
	// atLeast: the value must not be below the limit, instead of above.
	atLeast bool
	// slack is by how much the value may be wrong.
	slack float64
	// least is the smallest value that is told apart.
	least float64
	// name says what cannot be read; telling is the message.
	name    string
	telling func(told float64) string
}

// readings lists all gauges.
func (f *fitness) readings(m *measurement) [gaugeCount]reading {
	t := &f.thresholds
	load, loadKnown := m.loadPercent()
	pressure := func(limit int, value float64, of string) reading {
		return reading{
			limit: float64(limit), value: value, known: value >= 0, name: "its pressure on " + of,
			telling: func(told float64) string {
				return fmt.Sprintf("processes wait for %s about %.0f %% of the time (threshold: %d %%)", of, told, limit)
			},
		}
	}
	return [gaugeCount]reading{
		gaugeDisk: {
			limit: float64(t.MinFreeBytes), value: float64(m.freeBytes), known: m.storeKnown, atLeast: true,
			least: float64(t.MinFreeBytes) / 64, name: "the room in its store",
			telling: func(told float64) string {
				limit := float64(t.MinFreeBytes)
				least := told <= limit/64
				few := "only about"
				if least {
					few = "less than"
				}
				return fmt.Sprintf("the file system of /nix/store has %s %s free (threshold: %s; the machine is used again from %s on)",
					few, size(told, !least), size(limit, false), size((1+betterBy)*limit, false))
			},
		},
		gaugeLoad: {
			limit: float64(t.MaxLoadPercent), value: load, known: loadKnown, name: "its load",
			telling: func(told float64) string {
				return fmt.Sprintf("its load is about %.0f %% of its processors (threshold: %d %%)", told, t.MaxLoadPercent)
			},
		},
		gaugeCPU:    pressure(t.MaxCPUPressure, m.cpu, "a processor"),
		gaugeMemory: pressure(t.MaxMemoryPressure, m.memory, "memory"),
		gaugeIO:     pressure(t.MaxIOPressure, m.io, "its disks"),
		gaugeClock: {
			limit: t.MaxClockSkew.Seconds(), value: math.Abs(m.skew.Seconds()), known: m.clockKnown, slack: m.slack.Seconds(), name: "its clock",
			telling: func(told float64) string {
				direction := "ahead of"
				if f.behind {
					direction = "behind"
				}
				return fmt.Sprintf("its clock is about %s %s the operator's (threshold: %.0f s)", span(told), direction, t.MaxClockSkew.Seconds())
			},
		},
	}
}

// judge compares what was measured with the thresholds. It returns what to say of all
// that stand for the reason.
func (f *fitness) judge(m *measurement) (Reason, []string) {
	said := map[Reason][]string{}
	if m.clockKnown {
		f.behind = m.skew < 0
	}
	for i, reading := range f.readings(m) {
		switch g := f.gauge(i); {
		case reading.limit == 0:
		case g.update(&reading):
			reason, words := gaugeReason(i), reading.name+" was beyond its threshold, and is not told any more"
			if g.told > 0 {
				words = reading.telling(g.told)
			}
			said[reason] = append(said[reason], words)
		case !reading.known:
			said[ReasonMachineNotMeasured] = append(said[ReasonMachineNotMeasured], reading.name)
		}
	}
	for _, reason := range []Reason{ReasonDiskPressure, ReasonOverloaded, ReasonClockSkewed, ReasonMachineNotMeasured} {
		if what := said[reason]; what != nil {
			return reason, what
		}
	}
	return ReasonMachineFit, nil
}

// gaugeReason is the reason of a threshold that is passed.
func gaugeReason(gauge int) Reason {
	switch gauge {
	case gaugeDisk:
		return ReasonDiskPressure
	case gaugeClock:
		return ReasonClockSkewed
	default:
		return ReasonOverloaded
	}
}

// update takes in a reading and reports whether the threshold counts as passed.
func (g *gauge) update(r *reading) bool {
	if !r.known {
		if g.unread++; g.unread >= maxUnread {
			*g = gauge{}
		}
		return g.passed
	}
	g.unread = 0
	excess, leeway := r.value-r.slack-r.limit, -betterBy*r.limit
	if r.atLeast {
		excess = r.limit - r.value
	}
	switch {
	case excess > 0:
		g.passed = true
	case excess <= leeway:
		*g = gauge{}
	}
	if value := max(r.value, r.least); g.passed && (g.told == 0 || value > 2*g.told || value < g.told/2) {
		g.told = value
	}
	return g.passed
}

// restoredFitness is what can be told from a kept snapshot. The load and what makes it
// have one reason, so all of them count as passed: the next probe clears up.
func restoredFitness(t *Target, kept *Snapshot) fitness {
	f := fitness{thresholds: t.Thresholds}
	outcome := kept.Result.Outcome(StepMachineFit)
	for i := range f.gauges {
		f.gauges[i].passed = outcome.Reason == gaugeReason(i)
	}
	if outcome.Status == StatusFalse {
		f.last = outcome
	}
	return f
}

// size shows a number of bytes in the unit that suits it, roughly with one digit only.
func size(n float64, roughly bool) string {
	for _, unit := range []struct {
		size float64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= unit.size {
			value := n / unit.size
			if roughly {
				digit := math.Pow(10, math.Floor(math.Log10(value)))
				value = math.Round(value/digit) * digit
			}
			return strings.TrimSuffix(fmt.Sprintf("%.1f", value), ".0") + " " + unit.name
		}
	}
	return fmt.Sprintf("%.0f bytes", n)
}

// span shows how long something is in the unit that suits it.
func span(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24+0.5))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()+0.5))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()+0.5))
	default:
		return fmt.Sprintf("%d seconds", int(d.Seconds()+0.5))
	}
}
