// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package figures

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func example() Document {
	series := seriesOf("trivial_loopback", "2.8.0", map[string][]float64{Direct: {1, 1, 1}, Dispatcher: {0.25, 0.5, 0.3}})
	series.Add("slots_exceeded", "2.8.0", Dispatcher, 0)
	series.Add(CPU+"trivial_loopback", "2.8.0", Process, 0.01)
	series.Add(MostRunning+"4", "2.8.0", Direct, 9)
	series.Add("trivial_rtt20", "2.8.0", Dispatcher, 0.2)
	series.Add("trivial_rtt80", "2.8.0", Dispatcher, 0.5)
	return Document{
		Commit:        "0123456789abcdef",
		Date:          time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Load:          1.5,
		Machine:       Machine{CPU: "Processor", Cores: 2, MemoryMiB: 1024, Kernel: "6.1", Congestion: "cubic"},
		Versions:      map[string]string{"Nix bookworm": "2.8.0"},
		Sections:      map[string]Section{"trivial": {Load: 0.1, Seconds: 3}},
		Lines:         map[string]float64{"rtt20": 20.2},
		KillsPerPhase: map[string]int{"Building": 8},
		Series:        series,
	}
}

func TestSaveAndLoad(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bench.json")
	if d, err := Load(path); d != nil || err != nil {
		t.Fatalf("without a file: %v, %v", d, err)
	}
	want := example()
	if err := want.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	var figure struct {
		Median, Min, Max float64
		Runs             int
		Samples          []float64
	}
	if err := json.Unmarshal(fields["trivial_loopback_ratio"], &figure); err != nil {
		t.Fatal(err)
	}
	if figure.Median != 0.3 || figure.Min != 0.25 || figure.Max != 0.5 || figure.Runs != 3 || len(figure.Samples) != 3 {
		t.Errorf("trivial_loopback_ratio is %+v", figure)
	}
	for _, name := range []string{"machine", "versions", "commit", "date", "slots_exceeded"} {
		if fields[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	if !strings.Contains(string(text), "\"samples\": [0.25, 0.5, 0.3]") {
		t.Errorf("samples are not on one line:\n%s", text)
	}
}

func TestLoadDamaged(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name the file", err)
	}
}

func TestComparable(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*Document)
		want   string // in the error; empty: none
	}{
		"the same":        {change: func(d *Document) { d.Date = d.Date.Add(time.Hour) }},
		"another commit":  {change: func(d *Document) { d.Commit = "feed" }, want: "feed"},
		"another machine": {change: func(d *Document) { d.Machine.Cores = 64 }, want: "another machine"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newer := example()
			tc.change(&newer)
			err := example().Comparable(newer)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	newer := Document{
		Commit:   "0123456789abcdef",
		Versions: map[string]string{"Nix trixie": "2.26.3"},
		Sections: map[string]Section{"chain": {Seconds: 9}},
		Series:   seriesOf("chain_loopback", "2.26.3", map[string][]float64{Direct: {1}}),
	}
	got := example().Merge(newer)
	if len(got.Versions) != 2 || len(got.Sections) != 2 || len(got.Lines) != 1 || len(got.Series) != 7 || got.KillsPerPhase == nil {
		t.Errorf("something is lost: %+v", got)
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	text := example().Markdown()
	for _, want := range []string{
		"Commit 0123456789ab, 2026-01-02, load 1.50 at the start. 2 × Processor",
		"rtt20 20.2 ms",
		"`trivial_loopback_ratio` | 0.300 | 0.250 – 0.500 | 3 | 2.8.0 | ≤ 0.450 | reached |",
		"`slots_exceeded` | 0 | 0 – 0 | 1 | 2.8.0 | ≤ 0 | reached |",
		"| trivial, loopback | 2.8.0 | 1 | | 0.300 | | | | | 0.0100 |",
		"| trivial | 2.8.0 | | | 5.0 |",
		"| 4 | 2.8.0 | 9 | |",
		"Building 8",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
	if text := example().Text(); !strings.Contains(text, "trivial_loopback_ratio") || !strings.Contains(text, "reached") {
		t.Errorf("the text for a terminal lacks a figure:\n%s", text)
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	page := "before\n" + beginMarker + "\nold\n" + endMarker + "\nafter\n"
	got, err := Replace(page, "new\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := "before\n" + beginMarker + "\n\nnew\n\n" + endMarker + "\nafter\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if again, err := Replace(got, "new"); err != nil || again != got {
		t.Errorf("the same text changes the page: %q, %v", again, err)
	}
	if _, err := Replace("no markers", "new"); err == nil {
		t.Error("a page without markers is accepted")
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for x, want := range map[float64]string{0: "0", 50: "50", 0.0703: "0.0703", 0.45: "0.450", 1.2: "1.20", 34.146: "34.1", 40498.2: "40498"} {
		if got := number(x); got != want {
			t.Errorf("number(%v) = %s, want %s", x, got, want)
		}
	}
}
