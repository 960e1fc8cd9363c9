// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import "strings"

// message is text as a line of Nix's internal log, at the level of errors, which
// every Nix shows whenever it reads it.
func message(text string) string {
	var b strings.Builder
	b.WriteString(`@nix {"action":"msg","level":0,"msg":"`)
	for _, r := range text { // what is not UTF-8 becomes U+FFFD
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ':
			const digits = "0123456789abcdef"
			b.WriteString(`\u00`)
			b.WriteByte(digits[r>>4])
			b.WriteByte(digits[r&15])
		default:
			b.WriteRune(r)
		}
	}
	b.WriteString("\"}\n")
	return b.String()
}
