// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package plot

// Bars is a plot of medians, with the least and the most as whiskers.
type Bars struct {
	Title string
	// Unit is written at the axis.
	Unit string
	// Series are the bars of every group.
	Series []Series
	Groups []Group
}

// Group is a group of bars, one for each series.
type Group struct {
	// Labels are lines below the group.
	Labels []string
	// Bars are in the order of the series; nil leaves one out.
	Bars []*Bar
}

// Bar is the summary of some samples.
type Bar struct{ Median, Min, Max float64 }

const (
	barWidth   = 22
	groupGap   = 26
	leftMargin = 56
	topMargin  = 64
	plotHeight = 240
	lineHeight = 16
)

// SVG draws the plot.
func (b Bars) SVG() []byte {
	labels, most := 1, 0.0
	for _, group := range b.Groups {
		labels = max(labels, len(group.Labels))
		for _, bar := range group.Bars {
			if bar != nil {
				most = max(most, bar.Max)
			}
		}
	}
	groupWidth := float64(barWidth * len(b.Series))
	c := &canvas{
		width:  max(leftMargin+float64(len(b.Groups))*(groupWidth+groupGap)+groupGap, leftMargin+glyph*1.1*float64(len(b.Title))),
		height: topMargin + plotHeight + float64(labels*lineHeight) + 14,
	}
	y := newAxis(most, topMargin+plotHeight, topMargin)
	c.title(leftMargin, 20, b.Title)
	c.legend(leftMargin, 42, b.Series)
	c.text(leftMargin-8, topMargin-12, "end", b.Unit)
	for _, tick := range y.ticks() {
		c.line(leftMargin, y.at(tick), c.width-8, y.at(tick), faint)
		c.text(leftMargin-8, y.at(tick)+4, "end", tickLabel(tick))
	}
	for i, group := range b.Groups {
		x := leftMargin + groupGap + float64(i)*(groupWidth+groupGap)
		for k, bar := range group.Bars {
			if bar != nil {
				c.bar(x+float64(k*barWidth), y, *bar, b.Series[k].Colour)
			}
		}
		for k, label := range group.Labels {
			c.text(x+groupWidth/2, topMargin+plotHeight+float64((k+1)*lineHeight), "middle", label)
		}
	}
	return c.svg()
}

// bar draws one bar with its value above it.
func (c *canvas) bar(x float64, y axis, bar Bar, colour Colour) {
	c.rect(x+1, y.at(bar.Median), barWidth-2, y.zero-y.at(bar.Median), colour)
	middle := x + barWidth/2
	if bar.Max > bar.Min {
		c.line(middle, y.at(bar.Min), middle, y.at(bar.Max), ink)
		c.line(middle-3, y.at(bar.Min), middle+3, y.at(bar.Min), ink)
		c.line(middle-3, y.at(bar.Max), middle+3, y.at(bar.Max), ink)
	}
	c.small(middle, y.at(bar.Max)-4, short(bar.Median))
}

// small writes a value so that it fits above a bar.
func (c *canvas) small(x, y float64, text string) {
	c.body.WriteString(`<g font-size="9">`)
	c.text(x, y, "middle", text)
	c.body.WriteString("</g>\n")
}
