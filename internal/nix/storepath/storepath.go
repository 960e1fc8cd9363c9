// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package storepath checks the form of Nix store paths:
// <store directory>/<32 digits of hash>-<name>.
package storepath

import (
	"fmt"
	"strings"
)

// DefaultDir is the store directory of almost every Nix.
const DefaultDir = "/nix/store"

const (
	// hashLen is the number of base-32 digits of the 160-bit hash.
	hashLen = 32
	// maxNameLen is the longest name that Nix allows, in bytes.
	maxNameLen = 211
	// maxShown bounds how much of a bad path an error repeats.
	maxShown = 128
)

// Path is a well-formed store path. The zero value is no path.
type Path struct {
	dir  string
	base string
}

// Parse checks that s is a path directly in the store directory dir. The error
// is a *Error.
func Parse(dir, s string) (Path, error) {
	rest, ok := strings.CutPrefix(s, dir+"/")
	if !ok {
		return Path{}, &Error{Path: s, Reason: "is not in the store " + dir}
	}
	if reason := checkBase(rest); reason != "" {
		return Path{}, &Error{Path: s, Reason: reason}
	}
	return Path{dir: dir, base: rest}, nil
}

// checkBase says what is wrong with a path's last component, or nothing.
func checkBase(base string) string {
	if len(base) < hashLen+1 || base[hashLen] != '-' {
		return "has no hash of 32 digits followed by '-'"
	}
	for i := range hashLen {
		if !digit(base[i]) {
			return "has a character in its hash that is not a base-32 digit"
		}
	}
	return checkName(base[hashLen+1:])
}

// checkName says what is wrong with a name, or nothing.
func checkName(name string) string {
	switch {
	case name == "":
		return "has an empty name"
	case len(name) > maxNameLen:
		return fmt.Sprintf("has a name of more than %d bytes", maxNameLen)
	case name == "." || name == ".." || strings.HasPrefix(name, ".-") || strings.HasPrefix(name, "..-"):
		return "has a name that starts with '.' or '..' as a whole word"
	}
	for i := range len(name) {
		if !nameByte(name[i]) {
			return "has a character in its name that store paths must not have"
		}
	}
	return ""
}

// digit tells whether c is a digit of Nix's base 32: no e, o, t, u.
func digit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' && c != 'e' && c != 'o' && c != 't' && c != 'u'
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		strings.IndexByte("+-._?=", c) >= 0
}

// Hash returns the 32 digits.
func (p Path) Hash() string {
	if p.base == "" {
		return ""
	}
	return p.base[:hashLen]
}

// Name returns what follows the hash.
func (p Path) Name() string {
	if p.base == "" {
		return ""
	}
	return p.base[hashLen+1:]
}

// Base returns hash and name, the path's last component.
func (p Path) Base() string { return p.base }

// IsDerivation tells whether the path names a .drv file.
func (p Path) IsDerivation() bool { return strings.HasSuffix(p.base, ".drv") }

// String returns the whole path, or "" for the zero value.
func (p Path) String() string {
	if p.base == "" {
		return ""
	}
	return p.dir + "/" + p.base
}

// Error says why a text is no store path.
type Error struct {
	// Path is the text, Reason what is wrong with it as the rest of a sentence.
	Path, Reason string
}

// Error implements error.
func (e *Error) Error() string {
	shown := e.Path
	if len(shown) > maxShown {
		shown = shown[:maxShown] + "…"
	}
	return fmt.Sprintf("store path %q %s", shown, e.Reason)
}
