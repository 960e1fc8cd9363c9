// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package plot

import "math"

// Steps is a plot of counts over time, in panels one below the other.
type Steps struct {
	Title  string
	Series []Series
	Panels []Panel
}

// Panel has the lines of all series.
type Panel struct {
	Title string
	// Limit is drawn across; 0: none.
	Limit float64
	// Lines are in the order of the series.
	Lines []Line
}

// Line is a count that stays as it is until the next time.
type Line struct {
	Seconds []float64
	Counts  []float64
}

const (
	panelWidth  = 720
	panelHeight = 90
	panelGap    = 34
)

// SVG draws the plot.
func (s Steps) SVG() []byte {
	last := 0.0
	for _, panel := range s.Panels {
		for _, line := range panel.Lines {
			for _, seconds := range line.Seconds {
				last = max(last, seconds)
			}
		}
	}
	c := &canvas{
		width:  leftMargin + panelWidth + 24,
		height: topMargin + float64(len(s.Panels)*(panelHeight+panelGap)) + 14,
	}
	x := newAxis(last, leftMargin, leftMargin+panelWidth)
	c.title(leftMargin, 20, s.Title)
	c.legend(leftMargin, 42, s.Series)
	for i, panel := range s.Panels {
		c.panel(panel, s.Series, x, topMargin+float64(i*(panelHeight+panelGap))+panelGap-16)
	}
	for _, tick := range x.ticks() {
		c.text(x.at(tick), c.height-8, "middle", tickLabel(tick)+" s")
	}
	return c.svg()
}

// panel draws one panel whose upper edge is at top.
func (c *canvas) panel(panel Panel, series []Series, x axis, top float64) {
	most := panel.Limit
	for _, line := range panel.Lines {
		for _, count := range line.Counts {
			most = max(most, count)
		}
	}
	y := newAxis(most, top+panelHeight, top)
	y.step = max(1, math.Round(y.step)) // there are no halves of builds
	c.text(leftMargin, top-5, "start", panel.Title)
	for _, tick := range y.ticks() {
		c.line(leftMargin, y.at(tick), x.end, y.at(tick), faint)
		c.text(leftMargin-8, y.at(tick)+4, "end", tickLabel(tick))
	}
	if panel.Limit > 0 {
		c.line(leftMargin, y.at(panel.Limit), x.end, y.at(panel.Limit), ink)
	}
	for k, line := range panel.Lines {
		c.path(line.points(x, y), series[k].Colour)
	}
}

func (l Line) points(x, y axis) [][2]float64 {
	var points [][2]float64
	for i, count := range l.Counts {
		if i > 0 && count == l.Counts[i-1] && i < len(l.Counts)-1 {
			continue
		}
		if i > 0 {
			points = append(points, [2]float64{x.at(l.Seconds[i]), y.at(l.Counts[i-1])})
		}
		points = append(points, [2]float64{x.at(l.Seconds[i]), y.at(count)})
	}
	return points
}
