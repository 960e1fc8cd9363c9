// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"strings"
	"unicode"
)

// MaxText is how many characters of a peer's text are shown at most.
const MaxText = 64

// Printable makes text that a peer sent fit to be shown: runs of anything that
// is not printable become one space, and what exceeds [MaxText] characters is
// cut off and marked by an ellipsis (which counts).
func Printable(s string) string {
	var b strings.Builder
	count, gap := 0, false
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) || r == ' ' {
			gap = count > 0
			continue
		}
		need := 1
		if gap {
			need = 2
		}
		if count+need > MaxText {
			return cut(b.String())
		}
		if gap {
			b.WriteByte(' ')
		}
		b.WriteRune(r)
		count += need
		gap = false
	}
	return b.String()
}

// cut replaces the end of a text of nearly or exactly MaxText characters by an
// ellipsis.
func cut(s string) string {
	runes := []rune(s)
	if len(runes) >= MaxText {
		runes = runes[:MaxText-1]
	}
	return strings.TrimRight(string(runes), " ") + "…"
}
