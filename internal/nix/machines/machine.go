// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package machines is the model of Nix's machines file, the list of remote
// builders that the `builders` setting names.
//
// Reading is generous: [Parse] takes everything that people write and some
// release of Nix accepts. Writing is strict: [Format] produces only what every
// supported release of Nix and Lix reads in the same way, and refuses the
// rest, because one line that one release cannot read stops every build of
// its user, local builds included.
package machines

import (
	"fmt"
	"strings"
)

// Machine is one builder: one line of a machines file.
type Machine struct {
	// URI is the store to build on, usually ssh-ng://user@host.
	URI StoreURI
	// Systems are the platforms the builder runs derivations of, such as
	// x86_64-linux. None means the platform of whoever reads the file.
	Systems []string
	// Identity is the path of the SSH private key, "" to leave the choice to
	// ssh.
	Identity string
	// MaxJobs is how many builds the builder takes at once. Nix never uses a
	// machine that has 0.
	MaxJobs int
	// SpeedFactor weighs this builder against others that could do the same
	// build. Nix before 2.20 reads whole numbers only.
	SpeedFactor float64
	// SupportedFeatures are the system features a derivation may ask for.
	SupportedFeatures []string
	// MandatoryFeatures are those that a derivation must ask for to be built
	// here. They count as supported too.
	MandatoryFeatures []string
	// HostKey is the line of the builder's public host key, "type base64" and
	// maybe a comment, decoded from its column. "" leaves the check of the
	// host to ssh's own known_hosts.
	HostKey string
	// Origin is where Parse found the line. Format does not look at it.
	Origin Position
}

// Position is a place in a machines file. Line and Column count from 1;
// columns are bytes.
type Position struct {
	File         string
	Line, Column int
}

// String gives the usual file:line:column.
func (p Position) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }

// ParseError says where a machines file cannot be read, why, and what would
// be right there.
type ParseError struct {
	Position
	// Problem is what is wrong, quoting the text at fault.
	Problem string
	// Hint is what to write instead; it may be empty.
	Hint string
	// Err is the cause where there is one, such as a failure to read an
	// included file.
	Err error
}

// Error gives position, problem, cause and hint in one line.
func (e *ParseError) Error() string {
	var text strings.Builder
	text.WriteString(e.Position.String())
	text.WriteString(": ")
	text.WriteString(e.Problem)
	if e.Err != nil {
		text.WriteString(": ")
		text.WriteString(e.Err.Error())
	}
	if e.Hint != "" {
		text.WriteString(" (")
		text.WriteString(e.Hint)
		text.WriteString(")")
	}
	return text.String()
}

// Unwrap returns the cause.
func (e *ParseError) Unwrap() error { return e.Err }

// Columns of a line, in their order.
const (
	columnURI = iota
	columnSystems
	columnIdentity
	columnMaxJobs
	columnSpeedFactor
	columnSupportedFeatures
	columnMandatoryFeatures
	columnHostKey
	columnCount
)

// absent stands for a column that is not given.
const absent = "-"
