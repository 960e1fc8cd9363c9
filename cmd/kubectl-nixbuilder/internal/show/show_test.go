// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package show

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStyles(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		colour bool
		style  Style
		text   string
		want   string
	}{
		"in colour":                   {true, Bad, "x", "\x1b[31mx\x1b[0m"},
		"without":                     {false, Bad, "x", "x"},
		"plain":                       {true, Plain, "x", "x"},
		"nothing":                     {true, Bad, "", ""},
		"what a builder wrote":        {true, Good, "a\x1b[2Jb", "\x1b[32ma\uFFFD[2Jb\x1b[0m"},
		"several lines are one":       {false, Plain, "a\nb\tc", "a b c"},
		"a change of direction":       {false, Plain, "a\u202eb", "a\uFFFDb"},
		"letters beyond ASCII remain": {false, Plain, "größer …", "größer …"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := (&Printer{colour: tc.colour}).Styled(tc.style, tc.text); got != tc.want {
				t.Errorf("Styled = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestNoColourButOnATerminal(t *testing.T) {
	t.Parallel()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p := New(file, func(string) string { return "" })
	p.Linef("%s", p.Styled(Bad, "x"))
	text, err := os.ReadFile(file.Name())
	if err != nil || string(text) != "x\n" {
		t.Errorf("the file has %q, %v", text, err)
	}
	progress := NewProgress(file)
	progress.Show("waiting")
	progress.Clear()
	if text, err = os.ReadFile(file.Name()); err != nil || string(text) != "x\n" {
		t.Errorf("progress was written to a file: %q, %v", text, err)
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &Progress{out: &out, live: true}
	p.Clear()
	p.Show("one")
	p.Show("two")
	p.Note("stays")
	p.Clear()
	want := "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[Kstays\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &Printer{out: &out, colour: true}
	p.Table([]string{"NAME", "STATE"}, [][]Cell{{{Text: "größer"}, {Text: "Healthy", Style: Good}}, {{Text: "b"}, {}}})
	want := "NAME     STATE\ngrößer   \x1b[32mHealthy\x1b[0m\nb        -\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParagraph(t *testing.T) {
	t.Parallel()
	text := strings.TrimSpace(strings.Repeat("word ", 20))
	tests := map[string]struct {
		width, wantLines int
	}{
		"no limit":                 {0, 1},
		"a terminal":               {52, 2},
		"too narrow to be limited": {20, 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			(&Printer{out: &out, width: tc.width}).Paragraph(2, Plain, text)
			if got := strings.Count(out.String(), "\n"); got != tc.wantLines {
				t.Errorf("%d lines, want %d:\n%s", got, tc.wantLines, out.String())
			}
			for line := range strings.Lines(out.String()) {
				if !strings.HasPrefix(line, "  word") || tc.wantLines > 1 && len(line)-1 > tc.width {
					t.Errorf("line %q", line)
				}
			}
		})
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := JSON(&out, map[string]string{"a": "<b>"}); err != nil {
		t.Fatal(err)
	}
	if want := "{\n  \"a\": \"<b>\"\n}\n"; out.String() != want {
		t.Errorf("JSON = %q, want %q", out.String(), want)
	}
}
