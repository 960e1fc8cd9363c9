// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import "strings"

// ParsePortable reads text that must be in the form that Format writes, and
// comment lines. It is the check to make before a file is published: what it
// accepts is read in the same way by every supported release of Nix and Lix.
func ParsePortable(name string, text []byte) ([]Machine, error) {
	number := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		number++
		if line == "" {
			continue
		}
		if problem := portableProblem(line); problem != "" {
			return nil, &ParseError{
				Position: Position{File: name, Line: number, Column: 1},
				Problem:  problem,
				Hint:     "older releases of Nix read it differently or not at all",
			}
		}
	}
	list, err := Parse(name, text, ParseOptions{})
	if err != nil {
		return nil, err
	}
	for _, machine := range list {
		if _, err := machine.columns(); err != nil {
			return nil, &ParseError{Position: machine.Origin, Problem: "not portable", Err: err}
		}
	}
	return list, nil
}

// portableProblem says what keeps a line from the portable form; "" if
// nothing does.
func portableProblem(line string) string {
	if strings.Contains(line, ";") {
		return "a semicolon separates machines, even in a comment"
	}
	if line[0] == '#' {
		return ""
	}
	columns := strings.Split(line, " ")
	switch {
	case strings.Contains(line, "#"):
		return "a comment does not begin in the first column"
	case line[0] == '@':
		return "the file includes another one"
	case len(columns) != columnCount:
		return "the line does not have eight columns separated by single spaces"
	}
	for _, column := range columns {
		if column == "" || !printable(column) {
			return "the line has blanks or control characters besides single spaces"
		}
	}
	return ""
}
