// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	// maxNameLength bounds a readable class name. Clients make a lock file
	// named after the whole store URI, and file names end at 255 bytes.
	maxNameLength = 80
	// separator stands between system and features, twice before mandatory
	// ones. A word that contains it is not spelled out.
	separator = "."
	// opaqueMark separates system and hash in a class name that cannot be
	// spelled out. No readable name contains it.
	opaqueMark = "..."
)

// Class is a kind of build: what a line of the client's machines file stands
// for, and, with Features and Mandatory both set to what a derivation requires,
// what one derivation needs.
//
// Both lists are sorted, without duplicates and disjoint; [NewClass] makes them
// so.
type Class struct {
	// System is the platform, such as "x86_64-linux".
	System string
	// Features may be required by a build of the class.
	Features []string
	// Mandatory is required by every build of the class.
	Mandatory []string
}

// NewClass returns the class of builds for system that require all of mandatory
// and nothing outside features and mandatory.
func NewClass(system string, features, mandatory []string) Class {
	m := normalized(mandatory)
	f := normalized(features)
	f = slices.DeleteFunc(f, func(s string) bool { return contains(m, s) })
	return Class{System: system, Features: f, Mandatory: m}
}

// Need returns the class of exactly the builds for system that require
// features: what a derivation asks for once it is known.
func Need(system string, features []string) Class {
	return NewClass(system, nil, features)
}

// Name returns the class's name for use in a store URI: stable, short, and of
// letters, digits, dashes, underscores and dots. "x86_64-linux",
// "x86_64-linux.kvm.nixos-test", "aarch64-darwin..gpu" (gpu is mandatory). A
// class whose name would be long or contain other characters is named by a
// hash, so a name is looked up, not taken apart.
func (c Class) Name() string {
	name := strings.Join(append([]string{c.System}, c.Features...), separator)
	if len(c.Mandatory) > 0 {
		name += separator + separator + strings.Join(c.Mandatory, separator)
	}
	if len(name) <= maxNameLength && c.spellable() {
		return name
	}
	sum := sha256.Sum256([]byte(c.Key()))
	system := c.System
	if !plain(system) || len(system) > maxNameLength/2 {
		system = "class"
	}
	hash := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10])
	return system + opaqueMark + strings.ToLower(hash)
}

// Key identifies the class exactly, for use as a map key.
func (c Class) Key() string {
	return strconv.Quote(c.System) + fmt.Sprintf("%q%q", c.Features, c.Mandatory)
}

// String describes the class in words: "x86_64-linux with kvm".
func (c Class) String() string {
	all := normalized(append(slices.Clone(c.Features), c.Mandatory...))
	if len(all) == 0 {
		return c.System
	}
	return c.System + " with " + strings.Join(all, ", ")
}

func (c Class) spellable() bool {
	for _, word := range slices.Concat([]string{c.System}, c.Features, c.Mandatory) {
		if !plain(word) {
			return false
		}
	}
	return true
}

// plain reports whether word consists of characters that mean nothing to URIs,
// shells and the grammar of class names.
func plain(word string) bool {
	if word == "" {
		return false
	}
	for _, r := range word {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		case r == '-' || r == '_':
		default:
			return false
		}
	}
	return true
}

// normalized returns a sorted copy of list without duplicates and empty words.
func normalized(list []string) []string {
	out := slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == "" })
	slices.Sort(out)
	return slices.Clip(slices.Compact(out))
}

// contains reports whether the sorted list has word.
func contains(sorted []string, word string) bool {
	_, found := slices.BinarySearch(sorted, word)
	return found
}
