// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package show

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// Progress is one line that is written again and again, on a terminal alone.
type Progress struct {
	out   io.Writer
	live  bool
	shown bool
}

// NewProgress writes to out if that is a terminal, else nothing.
func NewProgress(out io.Writer) *Progress {
	file, ok := out.(*os.File)
	return &Progress{out: out, live: ok && term.IsTerminal(int(file.Fd()))}
}

// clearLine goes to the beginning of the line and erases it.
const clearLine = "\r\x1b[K"

// Show replaces the line.
func (p *Progress) Show(text string) {
	if p.live {
		_, _ = fmt.Fprint(p.out, clearLine+Clean(text))
		p.shown = true
	}
}

// Note writes a line that stays, also where there is no terminal.
func (p *Progress) Note(text string) {
	p.Clear()
	_, _ = fmt.Fprintln(p.out, Clean(text))
}

// Clear takes the line away.
func (p *Progress) Clear() {
	if p.shown {
		_, _ = fmt.Fprint(p.out, clearLine)
		p.shown = false
	}
}
