// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"testing"

	"golang.org/x/crypto/ssh/knownhosts"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

func TestKnownHosts(t *testing.T) {
	t.Parallel()
	key := AuthorizedKey(sshtest.NewKey(t).PublicKey())
	const hashed = "|1|tI4OXYYTdMGmCDuRPMLfzDfHQqQ=|vLVmmJvv1gJGTO0a2hBpBZ6AkWw=" // not of any host below
	tests := map[string]struct {
		line        string
		host        string
		port        int
		pinned, cas int
	}{
		"plain":             {"one,two " + key, "two", 22, 1, 0},
		"case":              {"One " + key, "one", 22, 1, 0},
		"other":             {"one " + key, "two", 22, 0, 0},
		"port":              {"[one]:2222 " + key, "one", 2222, 1, 0},
		"other port":        {"[one]:2222 " + key, "one", 22, 0, 0},
		"default port":      {"one " + key, "one", 2222, 0, 0},
		"wildcard":          {"*.example.org " + key, "a.example.org", 22, 1, 0},
		"negated":           {"*.example.org,!b.example.org " + key, "b.example.org", 22, 0, 0},
		"authority":         {"@cert-authority * " + key, "one", 22, 0, 1},
		"revoked":           {"@revoked one " + key, "one", 22, 0, 0},
		"hashed, other":     {hashed + " " + key, "one", 22, 0, 0},
		"comment":           {"# one " + key, "one", 22, 0, 0},
		"malformed":         {"one ssh-ed25519 x", "one", 22, 0, 0},
		"malformed, others": {"one ssh-ed25519 x\none " + key, "one", 22, 1, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := KnownHosts([]byte(tc.line), tc.host, tc.port)
			if len(p.Pinned) != tc.pinned || len(p.Authorities) != tc.cas {
				t.Errorf("%d keys and %d authorities, want %d and %d", len(p.Pinned), len(p.Authorities), tc.pinned, tc.cas)
			}
		})
	}
}

func TestHashedKnownHost(t *testing.T) {
	t.Parallel()
	// As ssh-keygen -H writes it.
	line := knownhosts.HashHostname("[one]:2222")
	if !matchHost([]string{line}, "[one]:2222") || matchHost([]string{line}, "one") {
		t.Errorf("%s does not match what it was made of, or matches more", line)
	}
	for _, bad := range []string{"|1|", "|1|a|b", "|1|AAAA|%", "|1|%|AAAA", "|1|a|b|c"} {
		if matchPattern(bad, "one") {
			t.Errorf("%s matches", bad)
		}
	}
}
