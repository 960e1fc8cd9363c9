// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package show prints for people, with colours on a terminal alone, and for programs.
package show

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Style is how a text is to look on a terminal.
type Style string

// The styles. Their values are parameters of the terminal's "select graphic
// rendition" (ECMA-48, 8.3.117).
const (
	Plain  Style = ""
	Strong Style = "1"
	Dim    Style = "2"
	Bad    Style = "31"
	Good   Style = "32"
	Doubt  Style = "33"
)

// Printer writes text.
type Printer struct {
	out io.Writer
	// colour tells whether styles show; width is the terminal's, 0 for no limit.
	colour bool
	width  int
}

// New returns a printer. Styles show if out is a terminal, and the environment does
// not object with NO_COLOR or TERM=dumb. getenv is os.Getenv.
func New(out io.Writer, getenv func(string) string) *Printer {
	p := &Printer{out: out}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		p.colour = getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
		if width, _, err := term.GetSize(int(file.Fd())); err == nil {
			p.width = width
		}
	}
	return p
}

// Styled returns the text as it is to be written.
func (p *Printer) Styled(style Style, text string) string {
	text = Clean(text)
	if !p.colour || style == Plain || text == "" {
		return text
	}
	return "\x1b[" + string(style) + "m" + text + "\x1b[0m"
}

// Linef writes a line.
func (p *Printer) Linef(format string, args ...any) {
	_, _ = fmt.Fprintf(p.out, format+"\n", args...)
}

// Paragraph writes text, indented, in lines no longer than the terminal's.
func (p *Printer) Paragraph(indent int, style Style, text string) {
	margin := strings.Repeat(" ", indent)
	for _, line := range wrap(Clean(text), p.width-indent) {
		p.Linef("%s%s", margin, p.Styled(style, line))
	}
}

// wrap breaks text between words. A width too small for prose is none.
func wrap(text string, width int) []string {
	const readable = 40
	if width < readable {
		return []string{text}
	}
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// Cell is a place in a table.
type Cell struct {
	Text  string
	Style Style
}

// Table writes rows below a header, in columns. Empty cells become "-".
func (p *Printer) Table(header []string, rows [][]Cell) {
	all := [][]Cell{make([]Cell, len(header))}
	for i, title := range header {
		all[0][i] = Cell{Text: title}
	}
	all = append(all, rows...)
	widths := make([]int, len(header))
	for _, row := range all {
		for i := range row {
			if row[i].Text = Clean(row[i].Text); row[i].Text == "" {
				row[i].Text = "-"
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].Text))
		}
	}
	for _, row := range all {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(p.Styled(cell.Style, cell.Text))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell.Text)+3))
			}
		}
		p.Linef("%s", line.String())
	}
}

// Clean takes out what could move a terminal's cursor or change its state: what a
// builder or another user wrote is printed here.
func Clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// JSON writes a document.
func JSON(out io.Writer, document any) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(document)
}
