// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// row is what a release of Nix makes of one machine.
type row struct {
	URI                          string
	Systems, Supported, Required []string
	Identity, HostKey            string
	Jobs, Speed                  uint64
}

// strictestNix reads text with the rules that are strictest in any release:
// newlines and semicolons separate before comments are cut off, nothing is
// trimmed, and speed factors are whole. It is written after Nix's grammar,
// independently of Parse.
func strictestNix(text string) ([]row, error) {
	var rows []row
	for _, piece := range strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == ';' }) {
		if hash := strings.Index(piece, "#"); hash >= 0 {
			piece = piece[:hash]
		}
		if piece == "" {
			continue
		}
		if strings.ContainsRune(" \t\r@", rune(piece[0])) {
			return nil, fmt.Errorf("store URL was not found at the first column of a row: %q", piece)
		}
		tokens := strings.FieldsFunc(piece, func(r rune) bool { return strings.ContainsRune(" \t\r", r) })
		if len(tokens) != 8 {
			return nil, fmt.Errorf("%d tokens in %q", len(tokens), piece)
		}
		next, err := strictRow(tokens)
		if err != nil {
			return nil, err
		}
		rows = append(rows, next)
	}
	return rows, nil
}

// modernNix reads text as Nix does from 2.28.2 on: comments go first, then
// semicolons separate, then each piece is trimmed.
func modernNix(text string) ([]row, error) {
	var rows []row
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		for _, piece := range strings.Split(line, ";") {
			tokens := strings.Fields(piece)
			if len(tokens) == 0 {
				continue
			}
			for len(tokens) < 8 {
				tokens = append(tokens, "-")
			}
			next, err := strictRow(tokens)
			if err != nil {
				return nil, err
			}
			rows = append(rows, next)
		}
	}
	return rows, nil
}

func strictRow(tokens []string) (row, error) {
	set := func(i int) bool { return tokens[i] != "-" }
	list := func(i int) []string {
		if !set(i) {
			return nil
		}
		return strings.FieldsFunc(tokens[i], func(r rune) bool { return r == ',' })
	}
	next := row{URI: tokens[0], Systems: list(1), Supported: list(5), Required: list(6), Jobs: 1, Speed: 1}
	if set(2) {
		next.Identity = tokens[2]
	}
	var err error
	if set(3) {
		if next.Jobs, err = strconv.ParseUint(tokens[3], 10, 32); err != nil {
			return row{}, err
		}
	}
	if set(4) {
		if next.Speed, err = strconv.ParseUint(tokens[4], 10, 32); err != nil {
			return row{}, err
		}
	}
	if set(7) {
		key, err := base64.StdEncoding.DecodeString(tokens[7])
		if err != nil {
			return row{}, err
		}
		next.HostKey = string(key)
	}
	return next, nil
}

// expectSameEverywhere checks that both grammars find in text just the list.
func expectSameEverywhere(t *testing.T, text string, list []Machine) {
	t.Helper()
	var want []row
	for _, m := range list {
		want = append(want, row{
			URI: m.URI.String(), Systems: m.Systems, Supported: m.SupportedFeatures, Required: m.MandatoryFeatures,
			Identity: m.Identity, HostKey: m.HostKey, Jobs: uint64(m.MaxJobs), Speed: uint64(m.SpeedFactor),
		})
	}
	for name, read := range map[string]func(string) ([]row, error){"strictest": strictestNix, "modern": modernNix} {
		got, err := read(text)
		if err != nil {
			t.Fatalf("%s Nix cannot read %q: %v", name, text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s Nix reads %q as (-want +got):\n%s", name, text, diff)
		}
	}
}

// generator makes machines, with texts that are awkward more often than in
// life. Those of it that Format accepts must mean the same to everybody.
type generator struct{ *rand.Rand }

func (g generator) pick(choices ...string) string { return choices[g.IntN(len(choices))] }

// text is a few bytes, most of them harmless.
func (g generator) text() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-._"
	var text []byte
	for range 1 + g.IntN(12) {
		switch g.IntN(40) {
		case 0:
			text = append(text, byte(g.IntN(256)))
		case 1:
			text = append(text, "+%?&=,;#@: /\\\"'[]"[g.IntN(17)])
		default:
			text = append(text, letters[g.IntN(len(letters))])
		}
	}
	return string(text)
}

func (g generator) list() []string {
	var list []string
	for range g.IntN(4) {
		list = append(list, g.pick("x86_64-linux", "kvm", "big-parallel", g.text()))
	}
	return list
}

func (g generator) machine() Machine {
	m := Machine{
		URI:               StoreURI{Scheme: g.pick("ssh", "ssh-ng"), Host: g.text(), User: g.pick("", "nix", g.text())},
		Systems:           g.list(),
		Identity:          g.pick("", "/etc/nix-keys/a/ssh-privatekey", "/"+g.text()),
		MaxJobs:           g.IntN(20),
		SpeedFactor:       float64(g.IntN(8)) / float64(1+g.IntN(2)),
		SupportedFeatures: g.list(),
		MandatoryFeatures: g.list(),
		HostKey:           g.pick("", testKey, testKey+" "+g.text()),
	}
	for range g.IntN(3) {
		if m.URI.Params == nil {
			m.URI.Params = map[string]string{}
		}
		m.URI.Params[g.pick(ParamRemoteProgram, ParamRemoteStore, g.text())] = g.text()
	}
	if g.IntN(20) == 0 {
		m.URI.Port = 1 + g.IntN(65535)
	}
	return m
}

// TestRoundTrip formats generated machines and reads them with every grammar.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := generator{rand.New(rand.NewPCG(seed, 0))}
	written := 0
	for range 3000 {
		var list []Machine
		for range 1 + g.IntN(3) {
			machine := g.machine()
			if _, err := Format([]Machine{machine}); err == nil {
				list = append(list, machine)
			}
		}
		text, err := Format(list)
		if err != nil {
			t.Fatalf("machines that can be written alone cannot together: %v", err)
		}
		written += len(list)
		got, err := ParsePortable("machines", text)
		if err != nil {
			t.Fatalf("our own text %q is not portable: %v", text, err)
		}
		if diff := cmp.Diff(list, got, ignoreOrigin); diff != "" {
			t.Fatalf("reading %q (-want +got):\n%s", text, diff)
		}
		expectSameEverywhere(t, string(text), list)
	}
	if written < 1000 {
		t.Errorf("only %d machines could be written: the generator does not test much", written)
	}
}

// FuzzParse checks that no text makes the reader fail other than by an error
// with a position inside the text, and that what it reads and Format accepts
// is the same to everybody.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"ssh-ng://nix@mac x86_64-linux,i686-linux /key 8 2 kvm,big-parallel kvm YWI=\n",
		"# c\n  # d; e\nmac;root@[::1]:22 - - 1 0.5 # x\n", "@/more\n@\n", "ssh://h?a=%20b&remote-store=x%", "-", "version = 1\n",
	} {
		f.Add([]byte(seed))
	}
	opts := files(map[string]string{"/more": "ssh-ng://more\n@/more2", "/more2": "ssh://x"})
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := Parse("machines", text, opts)
		if err != nil {
			checkPosition(t, err, string(text))
			return
		}
		for _, machine := range list {
			text, err := Format([]Machine{machine})
			if err != nil {
				continue
			}
			again, err := ParsePortable("machines", text)
			if err != nil {
				t.Fatalf("our own text %q is not portable: %v", text, err)
			}
			if diff := cmp.Diff([]Machine{machine}, again, ignoreOrigin); diff != "" {
				t.Fatalf("reading %q (-want +got):\n%s", text, diff)
			}
			expectSameEverywhere(t, string(text), again)
		}
	})
}

func checkPosition(t *testing.T, err error, text string) {
	t.Helper()
	parseError, ok := err.(*ParseError)
	if !ok {
		t.Fatalf("error %v is a %T", err, err)
	}
	if parseError.File != "machines" {
		return // in one of the included files
	}
	lines := strings.Split(text, "\n")
	if parseError.Line < 1 || parseError.Line > len(lines) {
		t.Fatalf("%v: the text has %d lines", err, len(lines))
	}
	if line := lines[parseError.Line-1]; parseError.Column < 1 || parseError.Column > len(line)+1 {
		t.Fatalf("%v: the line has %d bytes", err, len(line))
	}
}
