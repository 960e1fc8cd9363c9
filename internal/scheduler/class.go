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
	// opaqueMark separates system and hash in a class name that cannot be
	// spelled out. No readable name contains it.
	opaqueMark = "~~~"
	// MaxSlot is the highest slot number a client may name.
	MaxSlot = 4095
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
// characters that neither URIs nor shells treat specially. "x86_64-linux",
// "x86_64-linux~kvm~nixos-test", "aarch64-darwin~~gpu" (gpu is mandatory). A
// class whose name would be long or contain other characters is named by a
// hash.
func (c Class) Name() string {
	name := strings.Join(append([]string{c.System}, c.Features...), "~")
	if len(c.Mandatory) > 0 {
		name += "~~" + strings.Join(c.Mandatory, "~")
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

// LineName joins a class name and a slot number to what a client's store URI
// carries.
func LineName(class string, slot int) string {
	return class + "." + strconv.Itoa(slot)
}

// ParseLineName splits what [LineName] joined.
func ParseLineName(s string) (class string, slot int, err error) {
	dot := strings.LastIndexByte(s, '.')
	if dot <= 0 {
		return "", 0, fmt.Errorf("%q is not a class and a slot number joined by a dot", s)
	}
	slot, err = strconv.Atoi(s[dot+1:])
	if err != nil || slot < 0 || slot > MaxSlot || strconv.Itoa(slot) != s[dot+1:] {
		return "", 0, fmt.Errorf("slot %q of class %q is not a number from 0 to %d", s[dot+1:], s[:dot], MaxSlot)
	}
	return s[:dot], slot, nil
}

func (c Class) spellable() bool {
	for _, word := range slices.Concat([]string{c.System}, c.Features, c.Mandatory) {
		if !plain(word) {
			return false
		}
	}
	return true
}

// plain reports whether word consists of characters that are unreserved in URIs
// and no part of the grammar of class names.
func plain(word string) bool {
	if word == "" {
		return false
	}
	for _, r := range word {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		case r == '-' || r == '_' || r == '.':
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
