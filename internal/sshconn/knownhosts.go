// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the hash of OpenSSH's known_hosts names
	"encoding/base64"
	"fmt"
	"path"
	"strings"

	"golang.org/x/crypto/ssh"
)

// KnownHosts collects the keys and authorities that an OpenSSH known_hosts file
// has for a host. Lines that cannot be read are skipped, as ssh does; revoked keys
// are not used.
func KnownHosts(content []byte, host string, port int) HostKeyPolicy {
	var policy HostKeyPolicy
	name := KnownHostName(host, port)
	for line := range strings.Lines(string(content)) {
		marker, patterns, key, _, _, err := ssh.ParseKnownHosts([]byte(line))
		if err != nil || !matchHost(patterns, name) {
			continue
		}
		switch marker {
		case "":
			policy.Pinned = append(policy.Pinned, key)
		case "cert-authority":
			policy.Authorities = append(policy.Authorities, key)
		}
	}
	return policy
}

// KnownHostName is how known_hosts names a host: in brackets and with the port unless
// that is 22.
func KnownHostName(host string, port int) string {
	if port == 22 {
		return host
	}
	return fmt.Sprintf("[%s]:%d", host, port)
}

// matchHost applies the patterns of one line: any match counts, but none if one
// that is negated matches too.
func matchHost(patterns []string, name string) bool {
	found := false
	for _, pattern := range patterns {
		if rest, negated := strings.CutPrefix(pattern, "!"); negated {
			if matchPattern(rest, name) {
				return false
			}
			continue
		}
		found = found || matchPattern(pattern, name)
	}
	return found
}

func matchPattern(pattern, name string) bool {
	if strings.HasPrefix(pattern, "|1|") {
		return matchHashed(pattern, name)
	}
	pattern, name = strings.ToLower(pattern), strings.ToLower(name)
	// Brackets are part of names with a port, not a set of characters.
	escaped := strings.NewReplacer("[", `\[`, "]", `\]`).Replace(pattern)
	ok, err := path.Match(escaped, name)
	return err == nil && ok
}

// matchHashed compares with "|1|salt|hash", the HMAC-SHA1 of a name.
func matchHashed(pattern, name string) bool {
	parts := strings.Split(pattern, "|")
	if len(parts) != 4 {
		return false
	}
	salt, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return false
	}
	want, err := base64.StdEncoding.DecodeString(parts[3])
	if err != nil {
		return false
	}
	mac := hmac.New(sha1.New, salt)
	mac.Write([]byte(name))
	return hmac.Equal(mac.Sum(nil), want)
}
