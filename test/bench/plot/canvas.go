// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package plot draws the plots of the benchmark as SVG. They are few and simple:
// bars in groups, and steps over time.
package plot

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// Series is one of several things that a plot compares.
type Series struct {
	Name   string
	Colour Colour
}

// Colour is one of SVG.
type Colour string

// Colours that are told apart also on paper and by people who see few.
const (
	Grey  Colour = "#b8b8b8"
	Light Colour = "#7da7d9"
	Dark  Colour = "#1f4e79"
)

const (
	ink      Colour = "#333333"
	faint    Colour = "#dddddd"
	fontSize        = 12
	// glyph is about the width of a letter.
	glyph = 6.6
)

// canvas collects the elements of a picture. Its coordinates are pixels from the
// top left corner.
type canvas struct {
	width, height float64
	body          strings.Builder
}

func (c *canvas) rect(x, y, width, height float64, colour Colour) {
	fmt.Fprintf(&c.body, `<rect x="%s" y="%s" width="%s" height="%s" fill="%s"/>`+"\n", px(x), px(y), px(width), px(height), colour)
}

func (c *canvas) line(x1, y1, x2, y2 float64, colour Colour) {
	fmt.Fprintf(&c.body, `<line x1="%s" y1="%s" x2="%s" y2="%s" stroke="%s"/>`+"\n", px(x1), px(y1), px(x2), px(y2), colour)
}

// text writes a line of text; anchor is start, middle or end.
func (c *canvas) text(x, y float64, anchor, text string) {
	fmt.Fprintf(&c.body, `<text x="%s" y="%s" text-anchor="%s" fill="%s">%s</text>`+"\n", px(x), px(y), anchor, ink, html.EscapeString(text))
}

// title writes the heading of the picture.
func (c *canvas) title(x, y float64, text string) {
	fmt.Fprintf(&c.body, `<text x="%s" y="%s" font-weight="bold" fill="%s">%s</text>`+"\n", px(x), px(y), ink, html.EscapeString(text))
}

// path draws a line through points.
func (c *canvas) path(points [][2]float64, colour Colour) {
	var d strings.Builder
	for i, p := range points {
		d.WriteString(map[bool]string{true: "M", false: "L"}[i == 0] + px(p[0]) + " " + px(p[1]))
	}
	fmt.Fprintf(&c.body, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", d.String(), colour)
}

// legend names the series, from x to the right.
func (c *canvas) legend(x, y float64, all []Series) {
	for _, series := range all {
		c.rect(x, y-10, 11, 11, series.Colour)
		c.text(x+16, y, "start", series.Name)
		x += 16 + glyph*float64(len(series.Name)) + 18
	}
}

// svg returns the picture as a file.
func (c *canvas) svg() []byte {
	return fmt.Appendf(nil, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]s" height="%[2]s" viewBox="0 0 %[1]s %[2]s" font-family="sans-serif" font-size="%[3]d">
<rect width="%[1]s" height="%[2]s" fill="white"/>
%[4]s</svg>
`, px(c.width), px(c.height), fontSize, c.body.String())
}

func px(x float64) string { return strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64) }

// axis maps values from 0 to most to pixels from zero to end.
type axis struct {
	most      float64
	zero, end float64
	step      float64
}

// newAxis picks an axis with four to eight round steps.
func newAxis(most, zero, end float64) axis {
	if most <= 0 {
		most = 1
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for _, factor := range []float64{0.2, 0.5, 1, 2} {
		if most/(step*factor) <= 8 {
			step *= factor
			break
		}
	}
	return axis{most: math.Ceil(most/step) * step, zero: zero, end: end, step: step}
}

func (a axis) at(value float64) float64 { return a.zero + (a.end-a.zero)*value/a.most }

// ticks are the values with a mark.
func (a axis) ticks() []float64 {
	var all []float64
	for i := 0; float64(i)*a.step <= a.most*1.0001; i++ {
		all = append(all, float64(i)*a.step)
	}
	return all
}

// tickLabel writes the value of a mark, without the errors of adding up.
func tickLabel(x float64) string { return strconv.FormatFloat(math.Round(x*1e6)/1e6, 'f', -1, 64) }

// short writes a value with as many digits as a plot needs.
func short(x float64) string {
	switch {
	case x == 0:
		return "0"
	case math.Abs(x) < 1:
		return strconv.FormatFloat(x, 'f', 2, 64)
	case math.Abs(x) < 10:
		return strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64)
	}
	return strconv.FormatFloat(x, 'f', 0, 64)
}
