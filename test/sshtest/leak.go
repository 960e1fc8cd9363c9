// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// leakedRun is how many characters of one line of a secret are too many to be
// there by chance.
const leakedRun = 8

// Leaked returns a part of secret that text shows, or "": raw, in hexadecimal, as
// numbers, in base64 at any offset, or any eight characters of a line that is no
// header.
func Leaked(text string, secret []byte) string {
	forms := []string{
		string(secret), fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret),
		strings.Trim(fmt.Sprint(secret), "[]"),
	}
	for offset := range min(3, len(secret)) {
		encoded := base64.StdEncoding.EncodeToString(secret[offset:])
		forms = append(forms, strings.TrimRight(encoded, "=")[:len(encoded)*3/4])
	}
	for line := range strings.Lines(string(secret)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "-----") {
			continue
		}
		for i := 0; i+leakedRun <= len(line); i++ {
			forms = append(forms, line[i:i+leakedRun])
		}
	}
	for _, form := range forms {
		if strings.Contains(text, form) {
			return form
		}
	}
	return ""
}
