// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Limits of Parse. They are far above what people write and keep a file that
// includes itself by detours, or a device named by mistake, from taking all
// memory.
const (
	// MaxSize is how many bytes a file and all it includes may have together.
	MaxSize = 1 << 20
	// MaxIncludes is how many @ lines are followed in one Parse.
	MaxIncludes = 256
	// MaxIncludeDepth is how deep included files may include others.
	MaxIncludeDepth = 16
)

// noTOML is the hint for lines of the other form of the file: a line such as
// "version = 1" would otherwise be a machine of that name.
const noTOML = "the TOML form that newer Lix reads is not supported; write one line per machine"

// ParseOptions are what Parse needs from outside the text.
type ParseOptions struct {
	// Include reads the file that an @ line names; a file that does not exist
	// (fs.ErrNotExist) counts as empty, as in Nix. It should not read more
	// than MaxSize bytes. With nil an @ line is an error.
	Include func(path string) ([]byte, error)
}

// Parse reads a machines file in the grammar of Nix 2.28.2 and later, the
// most generous one: entries are separated by newlines and semicolons, "#"
// begins a comment anywhere in a line, blanks around an entry do not count,
// "@path" includes a file, "-" and missing columns have their defaults, and
// columns after the eighth are ignored.
//
// name is only for messages. The error is the first mistake, a *ParseError;
// there are no machines then, as in Nix, where one bad line makes the file
// unusable.
func Parse(name string, text []byte, opts ParseOptions) ([]Machine, error) {
	p := parser{include: opts.Include}
	if err := p.file(name, text); err != nil {
		return nil, err
	}
	return p.machines, nil
}

type parser struct {
	include  func(path string) ([]byte, error)
	machines []Machine
	open     []string // files being read, outermost first
	includes int
	size     int
}

func (p *parser) file(name string, text []byte) error {
	p.size += len(text)
	if p.size > MaxSize {
		return &ParseError{
			Position: Position{File: name, Line: 1, Column: 1},
			Problem:  fmt.Sprintf("the machines file and what it includes are larger than %d bytes", MaxSize),
		}
	}
	p.open = append(p.open, name)
	defer func() { p.open = p.open[:len(p.open)-1] }()
	number := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		number++
		line, _, _ = strings.Cut(line, "#")
		column := 1
		for piece := range strings.SplitSeq(line, ";") {
			if err := p.entry(Position{name, number, column}, piece); err != nil {
				return err
			}
			column += len(piece) + len(";")
		}
	}
	return nil
}

// entry reads what stands between two separators.
func (p *parser) entry(pos Position, piece string) error {
	fields := splitFields(pos, piece)
	if len(fields) == 0 {
		return nil
	}
	if first := fields[0]; first.text[0] == '@' {
		path := strings.TrimFunc(piece[first.pos.Column-pos.Column+1:], isBlank)
		return p.follow(first.pos, path)
	}
	machine, err := parseFields(fields)
	if err != nil {
		return err
	}
	p.machines = append(p.machines, machine)
	return nil
}

// follow reads an included file.
func (p *parser) follow(pos Position, path string) error {
	fail := func(err error, format string, args ...any) error {
		return &ParseError{Position: pos, Problem: fmt.Sprintf(format, args...), Err: err}
	}
	p.includes++
	switch {
	case path == "":
		return fail(nil, "@ is not followed by the path of a file")
	case p.include == nil:
		return fail(nil, "other files are not included here")
	case slices.Contains(p.open, path):
		return fail(nil, "%s includes itself by way of %s", path, strings.Join(p.open, ", "))
	case len(p.open) > MaxIncludeDepth:
		return fail(nil, "files are included more than %d deep", MaxIncludeDepth)
	case p.includes > MaxIncludes:
		return fail(nil, "more than %d files are included", MaxIncludes)
	}
	text, err := p.include(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fail(err, "read included file %s", path)
	}
	return p.file(path, text)
}

// field is a word of an entry.
type field struct {
	pos  Position
	text string
}

// fail makes the error about this field, which has the number given from 0.
func (f field) fail(column int, problem, hint string, err error) error {
	return &ParseError{
		Position: f.pos,
		Problem:  fmt.Sprintf("column %d: %s", column+1, problem),
		Hint:     hint,
		Err:      err,
	}
}

func isBlank(r rune) bool { return r == ' ' || r == '\t' || r == '\r' }

func splitFields(pos Position, piece string) []field {
	var fields []field
	for start := 0; start < len(piece); {
		if isBlank(rune(piece[start])) {
			start++
			continue
		}
		end := start
		for end < len(piece) && !isBlank(rune(piece[end])) {
			end++
		}
		at := pos
		at.Column += start
		fields = append(fields, field{at, piece[start:end]})
		start = end
	}
	return fields
}

// parseFields reads one machine; fields has at least one element.
func parseFields(fields []field) (Machine, error) {
	column := func(number int) (field, bool) {
		if number >= len(fields) || fields[number].text == absent {
			return field{}, false
		}
		return fields[number], true
	}
	list := func(number int) []string {
		given, _ := column(number)
		return splitList(given.text)
	}
	machine := Machine{
		Systems:           list(columnSystems),
		MaxJobs:           1,
		SpeedFactor:       1,
		SupportedFeatures: list(columnSupportedFeatures),
		MandatoryFeatures: list(columnMandatoryFeatures),
		Origin:            fields[0].pos,
	}
	var err error
	if machine.URI, err = parseURIField(fields[0]); err != nil {
		return Machine{}, err
	}
	if given, ok := column(columnSystems); ok && given.text == "=" {
		return Machine{}, given.fail(columnSystems, fmt.Sprintf("%q is not a list of systems", given.text), noTOML, nil)
	}
	if given, ok := column(columnIdentity); ok {
		machine.Identity = given.text
	}
	if given, ok := column(columnMaxJobs); ok {
		if machine.MaxJobs, err = parseMaxJobs(given); err != nil {
			return Machine{}, err
		}
	}
	if given, ok := column(columnSpeedFactor); ok {
		if machine.SpeedFactor, err = parseSpeedFactor(given); err != nil {
			return Machine{}, err
		}
	}
	if given, ok := column(columnHostKey); ok {
		if machine.HostKey, err = DecodeHostKey(given.text); err != nil {
			return Machine{}, given.fail(columnHostKey, "the host key is not valid base64",
				`the column takes the output of "base64 -w0" on the builder's whole ssh_host_…_key.pub`, err)
		}
	}
	return machine, nil
}

func parseURIField(given field) (StoreURI, error) {
	if given.text == absent {
		return StoreURI{}, given.fail(columnURI, "the store URI cannot be left out", "such as ssh-ng://user@host", nil)
	}
	uri, err := ParseStoreURI(given.text)
	if err == nil {
		return uri, nil
	}
	hint := "such as ssh-ng://user@host"
	if given.text[0] == '[' {
		hint = noTOML
	}
	return StoreURI{}, given.fail(columnURI, fmt.Sprintf("%q is not a store URI", given.text), hint, err)
}

func parseMaxJobs(given field) (int, error) {
	jobs, err := strconv.ParseUint(given.text, 10, 32)
	if err != nil || jobs > math.MaxInt32 {
		return 0, given.fail(columnMaxJobs, fmt.Sprintf("%q is not a number of jobs", given.text),
			"how many builds the machine runs at once, a whole number such as 4", nil)
	}
	return int(jobs), nil
}

// parseSpeedFactor reads a decimal number. Nix takes 0 for 1.
func parseSpeedFactor(given field) (float64, error) {
	factor, err := strconv.ParseFloat(given.text, 64)
	decimal := !strings.ContainsFunc(given.text, func(r rune) bool { return !strings.ContainsRune("0123456789.eE+-", r) })
	if err != nil || !decimal || factor < 0 {
		return 0, given.fail(columnSpeedFactor, fmt.Sprintf("%q is not a speed factor", given.text),
			"a positive number such as 1 or 2", nil)
	}
	if factor == 0 {
		return 1, nil
	}
	return factor, nil
}

// splitList takes a comma separated list apart and drops what is empty.
func splitList(text string) []string {
	var list []string
	for element := range strings.SplitSeq(text, ",") {
		if element != "" {
			list = append(list, element)
		}
	}
	return list
}

// DecodeHostKey decodes what the eighth column, or the URI parameter of the
// same meaning, holds. Nix does not insist on the padding. What comes out is
// what ssh will be told; see CheckHostKey for whether that is a key.
func DecodeHostKey(encoded string) (string, error) {
	decoded, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(encoded, "="))
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(decoded), " \t\r\n"), nil
}
