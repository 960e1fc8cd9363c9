// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package figures

// Figure is one result: the statistics of the Nix version that does worst, and
// those of all.
type Figure struct {
	Stats
	Unit string `json:"unit"`
	// Nix is the version that the statistics are of.
	Nix string `json:"nix"`
	// Goal is the bound that the median must keep; nil: none.
	Goal *Goal `json:"goal,omitempty"`
	// Reached tells whether it does.
	Reached *bool            `json:"reached,omitempty"`
	ByNix   map[string]Stats `json:"by_nix"`
}

// Goal is a bound: one of the two.
type Goal struct {
	AtMost  *float64 `json:"at_most,omitempty"`
	AtLeast *float64 `json:"at_least,omitempty"`
}

func atMost(x float64) *Goal  { return &Goal{AtMost: &x} }
func atLeast(x float64) *Goal { return &Goal{AtLeast: &x} }

func (g Goal) holds(x float64) bool {
	return (g.AtMost == nil || x <= *g.AtMost) && (g.AtLeast == nil || x >= *g.AtLeast)
}

// Units of figures.
const (
	UnitRatio   = "ratio"
	UnitSeconds = "s"
	UnitMiB     = "MiB"
	UnitCount   = "count"
	UnitRate    = "1/s"
)

// Spec says how a figure comes about.
type Spec struct {
	Name string
	Unit string
	// Meaning is what the figure is, for the table of figures.
	Meaning string
	Goal    *Goal
	// HigherIsBetter is so for throughput.
	HigherIsBetter bool
	// samples takes the figure's from the series, by Nix version.
	samples func(Series) map[string][]float64
}

// ratio is one of wall times, the dispatcher's by another way's.
func ratio(scenario, below string) func(Series) map[string][]float64 {
	return func(s Series) map[string][]float64 { return s.Ratio(scenario, Dispatcher, below) }
}

// throughput is a ratio of bytes per second for equal bytes: the other way's wall
// time by the dispatcher's.
func throughput(scenario string) func(Series) map[string][]float64 {
	return func(s Series) map[string][]float64 { return s.Ratio(scenario, Direct, Dispatcher) }
}

// plain is a figure measured as it is.
func plain(scenario string) func(Series) map[string][]float64 {
	return func(s Series) map[string][]float64 { return s.Of(scenario, Dispatcher) }
}

// Specs lists the figures in the order of the documents. Goals are those of the
// project for a machine with two processors.
func Specs() []Spec {
	wall := func(name, scenario, below, meaning string, goal *Goal) Spec {
		return Spec{Name: name, Unit: UnitRatio, Meaning: meaning, Goal: goal, samples: ratio(scenario, below)}
	}
	const (
		one    = "one trivial derivation, "
		twenty = "20 trivial derivations, 8 at once, "
		chain  = "chain of 15 derivations, "
	)
	return []Spec{
		wall("trivial_loopback_ratio", "trivial_loopback", Direct, one+"dispatcher / direct", atMost(0.45)),
		wall("trivial_rtt20_ratio", "trivial_rtt20", Direct, one+"20 ms, dispatcher / direct", nil),
		wall("trivial_rtt80_ratio", "trivial_rtt80", Direct, one+"80 ms, dispatcher / direct", atMost(0.35)),
		wall("trivial_floor_ratio", "trivial_loopback", Floor, one+"dispatcher / floor", atMost(1.2)),
		wall("parallel_loopback_ratio", "parallel_loopback", Direct, twenty+"dispatcher / direct", atMost(0.33)),
		wall("parallel_rtt20_ratio", "parallel_rtt20", Direct, twenty+"20 ms, dispatcher / direct", atMost(0.33)),
		wall("parallel_rtt80_ratio", "parallel_rtt80", Direct, twenty+"80 ms, dispatcher / direct", atMost(0.33)),
		wall("parallel_floor_ratio", "parallel_loopback", Floor, twenty+"dispatcher / floor", atMost(1.4)),
		wall("chain_loopback_ratio", "chain_loopback", Direct, chain+"dispatcher / direct", nil),
		wall("chain_rtt20_ratio", "chain_rtt20", Direct, chain+"20 ms, dispatcher / direct", nil),
		wall("chain_rtt80_ratio", "chain_rtt80", Direct, chain+"80 ms, dispatcher / direct", nil),
		wall("chain_floor_ratio", "chain_loopback", Floor, chain+"dispatcher / floor", nil),
		{Name: "upload_ratio", Unit: UnitRatio, Meaning: "throughput of a 1 GiB input, dispatcher / direct", Goal: atLeast(1), HigherIsBetter: true, samples: throughput("upload")},
		{Name: "download_ratio", Unit: UnitRatio, Meaning: "throughput of a 1 GiB output, dispatcher / direct", Goal: atLeast(1), HigherIsBetter: true, samples: throughput("download")},
		{Name: "lossy_ratio", Unit: UnitRatio, Meaning: "throughput of 8 × 128 MiB inputs, 80 ms and 0.1 % loss, dispatcher / direct", Goal: atLeast(1), HigherIsBetter: true, samples: throughput("lossy")},
		{Name: "transfer_rss_mib", Unit: UnitMiB, Meaning: "most memory of the dispatcher during those transfers", Goal: atMost(64), samples: plain("transfer_rss")},
		wall("makespan_ratio", "makespan", Bound, "100 builds of 4 clients on 3 builders, dispatcher / lower bound", atMost(1.15)),
		wall("makespan_stock_ratio", "makespan", Direct, "the same, dispatcher / direct", nil),
		{Name: "slots_exceeded", Unit: UnitCount, Meaning: "most builds at once on a builder beyond its slots", Goal: atMost(0), samples: plain("slots_exceeded")},
		{Name: "lines16_seconds", Unit: UnitSeconds, Meaning: "one trivial derivation, 16 lines in the client's file", samples: plain("lines16")},
		{Name: "lines256_seconds", Unit: UnitSeconds, Meaning: "the same, 256 lines", samples: plain("lines256")},
		{Name: "lines1024_seconds", Unit: UnitSeconds, Meaning: "the same, 1024 lines", samples: plain("lines1024")},
		{Name: "kills", Unit: UnitCount, Meaning: "builders killed while they had a build", HigherIsBetter: true, samples: plain("kills")},
		{Name: "builds_lost", Unit: UnitCount, Meaning: "builds lost by that", Goal: atMost(0), samples: plain("builds_lost")},
		{Name: "failover_closed_seconds", Unit: UnitSeconds, Meaning: "from a kill to the start of the build on another builder", Goal: atMost(1), samples: plain("failover")},
		{Name: "placements_per_second", Unit: UnitRate, Meaning: "placements with 10 000 builds waiting for 1 000 builders", HigherIsBetter: true, samples: plain("placements")},
	}
}

// Compute returns the figures for which there are samples, by name.
func Compute(series Series) map[string]Figure {
	figures := map[string]Figure{}
	for _, spec := range Specs() {
		if figure, ok := spec.compute(series); ok {
			figures[spec.Name] = figure
		}
	}
	return figures
}

func (spec Spec) compute(series Series) (Figure, bool) {
	all := map[string]Stats{}
	for nix, samples := range spec.samples(series) {
		all[nix] = Summarize(samples)
	}
	if len(all) == 0 {
		return Figure{}, false
	}
	nix := worst(all, !spec.HigherIsBetter)
	figure := Figure{Stats: all[nix], Unit: spec.Unit, Nix: nix, Goal: spec.Goal, ByNix: all}
	if spec.Goal != nil {
		reached := spec.Goal.holds(figure.Median)
		figure.Reached = &reached
	}
	return figure, true
}
