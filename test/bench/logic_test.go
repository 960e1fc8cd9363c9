// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

func TestLowerBound(t *testing.T) {
	t.Parallel()
	const second = time.Second
	tests := map[string]struct {
		work  [][]time.Duration
		slots []int
		want  time.Duration
	}{
		"all slots busy":        {work: [][]time.Duration{{4 * second, 2 * second}, {6 * second}}, slots: []int{1, 1}, want: 6 * second},
		"more slots than work":  {work: [][]time.Duration{{3 * second}, {second}}, slots: []int{4, 8}, want: 3 * second},
		"unequal slots add up":  {work: [][]time.Duration{{7 * second, 7 * second}, {7 * second}}, slots: []int{1, 2, 4}, want: 7 * second},
		"work that fills slots": {work: [][]time.Duration{slices.Repeat([]time.Duration{second}, 70)}, slots: []int{1, 2, 4}, want: 10 * second},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := lowerBound(tc.work, tc.slots); got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

func TestWorkload(t *testing.T) {
	t.Parallel()
	work := workload(7)
	if diff := cmp.Diff(work, workload(7)); diff != "" {
		t.Errorf("the same seed gives other work:\n%s", diff)
	}
	if cmp.Equal(work, workload(8)) {
		t.Error("another seed gives the same work")
	}
	if len(work) != makespanClients {
		t.Fatalf("%d clients", len(work))
	}
	for _, builds := range work {
		if len(builds) != makespanBuilds || slices.Min(builds) < 500*time.Millisecond || slices.Max(builds) > 4500*time.Millisecond {
			t.Errorf("%d builds of %v to %v", len(builds), slices.Min(builds), slices.Max(builds))
		}
	}
}

func TestBusyness(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		running      [][]int
		wantMost     []int
		wantExceeded int
	}{
		"nothing seen":     {wantExceeded: 0},
		"within the slots": {running: [][]int{{0, 2}, {1, 1}}, wantMost: []int{1, 2}, wantExceeded: 0},
		"once beyond":      {running: [][]int{{1, 2}, {1, 5}, {0, 0}}, wantMost: []int{1, 5}, wantExceeded: 3},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &busyness{running: tc.running}
			if diff := cmp.Diff(tc.wantMost, b.most()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got := b.exceeded([]int{1, 2}); got != tc.wantExceeded {
				t.Errorf("exceeded by %d, want %d", got, tc.wantExceeded)
			}
		})
	}
}

func TestRounds(t *testing.T) {
	t.Parallel()
	w := &ways{list: []way{{name: "a"}, {name: "b"}, {name: "c"}}}
	var got []string
	for round := range 4 {
		order := ""
		for _, each := range w.inRound(round) {
			order += each.name
		}
		got = append(got, order)
	}
	if diff := cmp.Diff([]string{"abc", "cab", "bca", "abc"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseRates(t *testing.T) {
	t.Parallel()
	output := []byte(`goos: linux
BenchmarkPlacement-2   	      12	  96000000 ns/op	     10400.5 placements/s	 120 B/op
BenchmarkPlacement-2   	      12	  96000000 ns/op	     9800 placements/s
PASS
`)
	got, err := parseRates(output, placementUnit)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]float64{10400.5, 9800}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := parseRates([]byte("PASS\n"), placementUnit); err == nil {
		t.Error("output without the unit is accepted")
	}
}

func TestParsePeak(t *testing.T) {
	t.Parallel()
	got, err := parsePeak([]byte("Name:\tnix-dispatcher\nVmPeak:\t 1240000 kB\nVmHWM:\t   24576 kB\nVmRSS:\t 1024 kB\n"))
	if err != nil || got != 24 {
		t.Errorf("%v MiB, %v; want 24", got, err)
	}
	if _, err := parsePeak([]byte("Name:\tx\n")); err == nil {
		t.Error("a status without the field is accepted")
	}
}

func TestFirstMachines(t *testing.T) {
	t.Parallel()
	const text = "# comment\nssh-ng://a x - 1\n\nssh-ng://b x - 1\nssh-ng://c x - 1\n"
	got, err := firstMachines(text, 2)
	if want := "ssh-ng://a x - 1\nssh-ng://b x - 1\n"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := firstMachines(text, 4); err == nil {
		t.Error("too few lines are accepted")
	}
}

func TestParseOptions(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		args         []string
		wantSections []string
		wantVersions []nixlab.Version
		wantComplete bool
		wantError    string // in the error; empty: none
	}{
		"all by default": {wantSections: sectionNames(), wantVersions: nixlab.Versions(), wantComplete: true},
		"some, in their own order": {
			args:         []string{"-sections=chain,trivial", "-versions=testing,bookworm"},
			wantSections: []string{"trivial", "chain"},
			wantVersions: []nixlab.Version{nixlab.Nix28, nixlab.Newest},
		},
		"unknown section":    {args: []string{"-sections=trivia"}, wantError: "trivia"},
		"unknown version":    {args: []string{"-versions=sid"}, wantError: "sid"},
		"negative runs":      {args: []string{"-runs=-1"}, wantError: "negative"},
		"stray argument":     {args: []string{"trivial"}, wantError: "trivial"},
		"nothing to divide":  {args: []string{"-size=4"}, wantError: "size"},
		"unknown suite list": {args: []string{"-versions="}, wantError: "versions"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, err := parseOptions(tc.args)
			if tc.wantError != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantError) {
					t.Fatalf("error %v, want one about %q", err, tc.wantError)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, each := range o.sections {
				names = append(names, each.name)
			}
			if diff := cmp.Diff(tc.wantSections, names); diff != "" {
				t.Errorf("sections (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantVersions, o.versions); diff != "" {
				t.Errorf("versions (-want +got):\n%s", diff)
			}
			if o.complete() != tc.wantComplete {
				t.Errorf("complete: %v", o.complete())
			}
		})
	}
}

func TestParseUsage(t *testing.T) {
	t.Parallel()
	machine, err := parseMachineUsage([]byte("cpu  100 20 300 5000 600 7 8 90 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"))
	if err != nil || machine != 4.35 {
		t.Errorf("machine: %v s, %v; want 4.35", machine, err)
	}
	process, err := parseProcessUsage([]byte("12 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 9 0 1 2 3"))
	if err != nil || process != 2 {
		t.Errorf("process: %v s, %v; want 2", process, err)
	}
	for _, text := range []string{"", "cpu 1 2\n"} {
		if _, err := parseMachineUsage([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
	if _, err := parseProcessUsage([]byte("12 (a) S 1")); err == nil {
		t.Error("a short line is accepted")
	}
}
