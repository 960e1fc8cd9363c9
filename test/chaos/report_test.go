// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
)

// report is the figures of a run of kills.
type report struct {
	Seed     uint64   `json:"seed"`
	Builders []string `json:"builders"`
	Clients  []string `json:"clients"`
	// Kills counts builders killed or cut off, PerPhase by phase of the build,
	// CutOff those that were cut off.
	Kills    int            `json:"kills"`
	PerPhase map[string]int `json:"per_phase"`
	CutOff   int            `json:"cut_off"`
	// Builds counts all that were under way, BuildsLost those that failed or had a
	// wrong output.
	Builds     int `json:"builds"`
	BuildsLost int `json:"builds_lost"`
	// FailoverClosed has the seconds from the kill to the start of the rebuild,
	// where the connection was closed and inputs were at most 1 MiB.
	FailoverClosed []float64 `json:"failover_closed_seconds"`
	Raw            []kill    `json:"raw"`
}

func newReport(w *world) *report {
	r := &report{Seed: *seedFlag, PerPhase: map[string]int{}, FailoverClosed: []float64{}}
	for _, b := range w.builders {
		r.Builders = append(r.Builders, b.Nix())
	}
	for _, c := range w.clients {
		r.Clients = append(r.Clients, c.Nix())
	}
	return r
}

// add counts a kill. One that never happened has no builder, only builds.
func (r *report) add(k kill) {
	r.Builds += k.Builds
	r.BuildsLost += k.Lost
	if k.Builder == "" {
		return
	}
	r.Raw = append(r.Raw, k)
	phase := k.Phase
	if k.Logged != "" {
		phase = k.Logged // it is what the dispatcher lost
	}
	r.Kills++
	r.PerPhase[phase]++
	if k.How != "killed" {
		r.CutOff++
	} else if k.Rebuilt != nil && k.InputBytes <= smallInputs {
		r.FailoverClosed = append(r.FailoverClosed, *k.Rebuilt)
	}
}

// judge fails the test where a goal is missed, and writes the report.
func (r *report) judge(t *testing.T) {
	t.Helper()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if *reportFlag != "" {
		if err := os.WriteFile(*reportFlag, append(text, '\n'), 0o644); err != nil {
			t.Error(err)
		}
	}
	slowest := 0.0
	if len(r.FailoverClosed) > 0 {
		slowest = slices.Max(r.FailoverClosed)
	}
	t.Logf("%d kills, by phase %v; %d of %d builds lost; a rebuild started at most %.3f s after a closed connection (%d times measured)",
		r.Kills, r.PerPhase, r.BuildsLost, r.Builds, slowest, len(r.FailoverClosed))
	if r.BuildsLost > 0 {
		t.Errorf("%d builds were lost", r.BuildsLost)
	}
	if *killsFlag < manyKills {
		return // the machine is busy with other tests
	}
	for _, phase := range phases {
		if least := *killsFlag * 8 / 50; r.PerPhase[string(phase)] < least {
			t.Errorf("%d kills in phase %s, want %d at least", r.PerPhase[string(phase)], phase, least)
		}
	}
	if slowest > rebuildGoal.Seconds() {
		t.Errorf("a rebuild started only after %.3f s, want %v at most", slowest, rebuildGoal)
	}
}
