// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package connect

import (
	"errors"
	"strconv"
	"strings"
)

const (
	// MaxClass is the longest class name in bytes.
	MaxClass = 128
	// MaxSlot is the highest slot number; slots count from 0.
	MaxSlot = 1<<16 - 1
)

// Target is a line of the client's machines file: what the build needs and
// which of the equal lines it is. Nix hands it to the helper as the value of
// --store.
type Target struct {
	// Class names a set of requirements: 1 to MaxClass letters, digits, and
	// the marks '-', '_' and '.'.
	Class string
	// Slot tells lines of one class apart, 0 to MaxSlot. Nix locks by line,
	// not by builder, so it says nothing about which builder is meant.
	Slot int
}

// String is the form ParseTarget reads. It needs no escaping in a URI query or
// in a shell.
func (t Target) String() string { return t.Class + "." + strconv.Itoa(t.Slot) }

// Validate reports a class or slot that cannot be sent.
func (t Target) Validate() error {
	if t.Class == "" {
		return errors.New("the class is empty")
	}
	if len(t.Class) > MaxClass {
		return errors.New("the class has " + strconv.Itoa(len(t.Class)) + " bytes, more than " + strconv.Itoa(MaxClass))
	}
	for i := range len(t.Class) {
		if !classByte(t.Class[i]) {
			return errors.New("the class " + strconv.Quote(t.Class) + " has a byte other than letters, digits, '-', '_' and '.'")
		}
	}
	if t.Slot < 0 || t.Slot > MaxSlot {
		return errors.New("the slot " + strconv.Itoa(t.Slot) + " is not within 0 and " + strconv.Itoa(MaxSlot))
	}
	return nil
}

// ParseTarget reads "<class>.<slot>". The slot is what follows the last dot,
// in decimal without leading zeros, so that each target has one spelling.
func ParseTarget(s string) (Target, error) {
	class, digits, found := cutLast(s, '.')
	if !found {
		return Target{}, errors.New(strconv.Quote(clip(s)) + " is not <class>.<slot>: it has no dot")
	}
	slot, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || strconv.FormatUint(slot, 10) != digits {
		return Target{}, errors.New(strconv.Quote(clip(s)) + " is not <class>.<slot>: what follows the last dot is no number within 0 and " + strconv.Itoa(MaxSlot))
	}
	t := Target{Class: class, Slot: int(slot)}
	if err := t.Validate(); err != nil {
		return Target{}, errors.New(strconv.Quote(clip(s)) + " is not <class>.<slot>: " + err.Error())
	}
	return t, nil
}

func classByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// clip keeps foreign text in messages short.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
