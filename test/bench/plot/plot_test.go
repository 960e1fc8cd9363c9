// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// elements counts the elements of a picture by name, and fails if it is no XML.
func elements(t *testing.T, svg []byte) map[string]int {
	t.Helper()
	counts := map[string]int{}
	decoder := xml.NewDecoder(strings.NewReader(string(svg)))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return counts
		}
		if err != nil {
			t.Fatalf("%v in:\n%s", err, svg)
		}
		if start, ok := token.(xml.StartElement); ok {
			counts[start.Name.Local]++
		}
	}
}

func TestBars(t *testing.T) {
	t.Parallel()
	svg := Bars{
		Title:  "Times & <more>",
		Unit:   "s",
		Series: []Series{{Name: "a", Colour: Grey}, {Name: "b", Colour: Dark}},
		Groups: []Group{
			{Labels: []string{"one", "Nix 2.8.0"}, Bars: []*Bar{{Median: 1, Min: 0.5, Max: 2}, {Median: 0.25, Min: 0.25, Max: 0.25}}},
			{Labels: []string{"two"}, Bars: []*Bar{nil, {Median: 3, Min: 3, Max: 3}}},
		},
	}.SVG()
	// The background, two in the legend, three bars.
	if got := elements(t, svg)["rect"]; got != 6 {
		t.Errorf("%d rectangles, want 6:\n%s", got, svg)
	}
	for _, want := range []string{"Times &amp; &lt;more&gt;", ">Nix 2.8.0<", ">0.25<", string(Dark)} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("%q is not in:\n%s", want, svg)
		}
	}
}

func TestBarsWithoutAny(t *testing.T) {
	t.Parallel()
	elements(t, Bars{Title: "nothing"}.SVG())
}

func TestSteps(t *testing.T) {
	t.Parallel()
	svg := Steps{
		Title:  "Running",
		Series: []Series{{Name: "a", Colour: Grey}, {Name: "b", Colour: Dark}},
		Panels: []Panel{
			{Title: "2 slots", Limit: 2, Lines: []Line{{Seconds: []float64{0, 1, 2}, Counts: []float64{0, 2, 1}}, {}}},
			{Title: "4 slots", Limit: 4, Lines: []Line{{Seconds: []float64{0, 30}, Counts: []float64{4, 4}}, {}}},
		},
	}.SVG()
	if got := elements(t, svg)["path"]; got != 4 {
		t.Errorf("%d lines, want one for each series and panel:\n%s", got, svg)
	}
	if !strings.Contains(string(svg), ">30 s<") {
		t.Errorf("the axis does not reach the last sample:\n%s", svg)
	}
}

func TestPoints(t *testing.T) {
	t.Parallel()
	unit := axis{most: 10, zero: 0, end: 10}
	line := Line{Seconds: []float64{0, 1, 2, 3, 4}, Counts: []float64{0, 1, 1, 1, 1}}
	want := [][2]float64{{0, 0}, {1, 0}, {1, 1}, {4, 1}, {4, 1}}
	if diff := cmp.Diff(want, line.points(unit, unit)); diff != "" {
		t.Errorf("a count holds until the next (-want +got):\n%s", diff)
	}
}

func TestAxis(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		most      float64
		wantMost  float64
		wantTicks int
	}{
		"nothing":      {most: 0, wantMost: 1, wantTicks: 6},
		"small":        {most: 0.37, wantMost: 0.4, wantTicks: 9},
		"round":        {most: 4, wantMost: 4, wantTicks: 9},
		"seconds":      {most: 27.1, wantMost: 30, wantTicks: 7},
		"large":        {most: 1400, wantMost: 1400, wantTicks: 8},
		"nearly ten":   {most: 9.9, wantMost: 10, wantTicks: 6},
		"just above 8": {most: 8.1, wantMost: 10, wantTicks: 6},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAxis(tc.most, 200, 0)
			if diff := a.most - tc.wantMost; diff > 1e-9 || diff < -1e-9 {
				t.Errorf("the axis ends at %v, want %v", a.most, tc.wantMost)
			}
			if got := len(a.ticks()); got != tc.wantTicks {
				t.Errorf("%d marks %v, want %d", got, a.ticks(), tc.wantTicks)
			}
			if a.at(0) != 200 || a.at(a.most) != 0 {
				t.Error("the ends are not where they belong")
			}
		})
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	for x, want := range map[float64]string{0: "0", 0.067: "0.07", 2.55: "2.6", 4: "4", 27.1: "27"} {
		if got := short(x); got != want {
			t.Errorf("short(%v) = %s, want %s", x, got, want)
		}
	}
}
