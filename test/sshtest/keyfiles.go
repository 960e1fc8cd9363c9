// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"bytes"
	"testing"

	"golang.org/x/crypto/ssh"
)

// NewKeyFiles returns what people put where a private key belongs, by name: "good", of
// which it returns the public key, "refused", another such, and "cutoff", "broken",
// "locked", "text" and "binary", which are of no use. None of it must ever be shown.
func NewKeyFiles(tb testing.TB) (map[string][]byte, ssh.PublicKey) {
	tb.Helper()
	good, public := NewKeyFile(tb)
	refused, _ := NewKeyFile(tb)
	cutOff, _ := NewKeyFile(tb)
	cutOff = append(cutOff[:len(cutOff)/2], "\n-----END OPENSSH PRIVATE KEY-----\n"...)
	broken, _ := NewKeyFile(tb)
	broken = bytes.ReplaceAll(broken, []byte("BEGIN OPENSSH"), []byte("BEGIN SOMETHING"))
	return map[string][]byte{
		"good": good, "refused": refused, "cutoff": cutOff, "broken": broken,
		"locked": NewLockedKeyFile(tb), "text": []byte("tr0ub4dor&3-swordfish"),
		"binary": bytes.Repeat([]byte{0, 1, 2, 0xff, 'k', 'e', 'y'}, 20),
	}, public
}
