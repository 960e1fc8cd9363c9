// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// TestHostKeys has a server with an ed25519, an RSA and an ECDSA key.
func TestHostKeys(t *testing.T) {
	t.Parallel()
	ed, rsa, ecdsa := sshtest.NewKey(t), sshtest.NewRSAKey(t), sshtest.NewECDSAKey(t)
	stranger, strangerRSA := sshtest.NewKey(t), sshtest.NewRSAKey(t)
	all := []ssh.Signer{ecdsa, rsa, ed}
	tests := map[string]struct {
		server   []ssh.Signer
		policy   HostKeyPolicy
		wantKind Kind
		wantKey  ssh.Signer // accepted, or seen
	}{
		"pinned ed25519": {
			server: all, policy: HostKeyPolicy{Pinned: publicKeys(ed)}, wantKey: ed,
		},
		"pinned RSA, of several keys the expected one is asked for": {
			server: all, policy: HostKeyPolicy{Pinned: publicKeys(rsa)}, wantKey: rsa,
		},
		"pinned ECDSA": {
			server: all, policy: HostKeyPolicy{Pinned: publicKeys(ecdsa)}, wantKey: ecdsa,
		},
		"several pinned, one of another machine": {
			server: all, policy: HostKeyPolicy{Pinned: publicKeys(stranger, ed)}, wantKey: ed,
		},
		"changed": {
			server: all, policy: HostKeyPolicy{Pinned: publicKeys(stranger)},
			wantKind: KindHostKeyChanged, wantKey: ed,
		},
		"changed RSA": {
			server: all, policy: HostKeyPolicy{Pinned: publicKeys(strangerRSA)},
			wantKind: KindHostKeyChanged, wantKey: rsa,
		},
		"other type": {
			server: []ssh.Signer{ed}, policy: HostKeyPolicy{Pinned: publicKeys(rsa)},
			wantKind: KindHostKeyType,
		},
		"nothing known": {
			server: all, policy: HostKeyPolicy{}, wantKind: KindHostKeyUnknown, wantKey: ed,
		},
		"first use": {
			server: all, policy: HostKeyPolicy{FirstUse: true}, wantKey: ed,
		},
		"first use of a host with RSA only": {
			server: []ssh.Signer{rsa}, policy: HostKeyPolicy{FirstUse: true}, wantKey: rsa,
		},
		"first use does not weaken a pin": {
			server: all, policy: HostKeyPolicy{FirstUse: true, Pinned: publicKeys(stranger)},
			wantKind: KindHostKeyChanged, wantKey: ed,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := configFor(t, sshtest.New(t, sshtest.Behavior{HostKeys: tc.server}))
			config.HostKeys = tc.policy
			conn, err := Dial(t.Context(), config)
			var got ssh.PublicKey
			if err == nil {
				got = conn.HostKey()
				_ = conn.Close()
			} else {
				e := asError(t, err)
				got = e.Seen
				if e.Step != StepKeyExchange {
					t.Errorf("step is %q", e.Step)
				}
				if want := fingerprints(tc.policy.Pinned); !slices.Equal(e.Expected, want) && len(want) > 0 {
					t.Errorf("expected keys are %q, want %q", e.Expected, want)
				}
			}
			if KindOf(err) != tc.wantKind {
				t.Fatalf("got %v, want kind %q", err, tc.wantKind)
			}
			switch {
			case tc.wantKey == nil && got != nil:
				t.Errorf("saw %s, want none", Fingerprint(got))
			case tc.wantKey != nil && (got == nil || Fingerprint(got) != Fingerprint(tc.wantKey.PublicKey())):
				t.Errorf("got key %v, want %s", got, Fingerprint(tc.wantKey.PublicKey()))
			}
		})
	}
}

func publicKeys(signers ...ssh.Signer) []ssh.PublicKey {
	var keys []ssh.PublicKey
	for _, s := range signers {
		keys = append(keys, s.PublicKey())
	}
	return keys
}

func TestHostCertificates(t *testing.T) {
	t.Parallel()
	authority, stranger := sshtest.NewKey(t), sshtest.NewKey(t)
	past, future := time.Now().Add(-time.Minute), time.Now().Add(time.Minute)
	host := sshtest.Certificate{Type: ssh.HostCert, Principals: []string{"127.0.0.1"}}
	with := func(change func(*sshtest.Certificate)) sshtest.Certificate {
		c := host
		change(&c)
		return c
	}
	key, rsaKey := sshtest.NewKey(t), sshtest.NewRSAKey(t)
	tests := map[string]struct {
		key      ssh.Signer
		cert     sshtest.Certificate
		pinned   []ssh.PublicKey
		unlisted bool // signed by somebody else
		wantKind Kind
	}{
		"valid":     {cert: host},
		"valid RSA": {key: rsaKey, cert: host},
		"one of several names": {cert: with(func(c *sshtest.Certificate) {
			c.Principals = []string{"mac-2", "127.0.0.1"}
		})},
		"pattern": {cert: with(func(c *sshtest.Certificate) { c.Principals = []string{"127.0.0.?"} })},
		"any":     {cert: with(func(c *sshtest.Certificate) { c.Principals = nil })},
		"other name": {
			cert:     with(func(c *sshtest.Certificate) { c.Principals = []string{"mac-2", "127.0.0.11"} }),
			wantKind: KindHostCertificatePrincipal,
		},
		"expired": {
			cert:     with(func(c *sshtest.Certificate) { c.ValidBefore = past }),
			wantKind: KindHostCertificateExpired,
		},
		"not yet valid": {
			cert:     with(func(c *sshtest.Certificate) { c.ValidAfter = future }),
			wantKind: KindHostCertificateEarly,
		},
		"unknown authority": {cert: host, unlisted: true, wantKind: KindHostCertificateAuthority},
		"of a user": {
			cert:     with(func(c *sshtest.Certificate) { c.Type = ssh.UserCert }),
			wantKind: KindHostCertificateInvalid,
		},
		"critical option": {
			cert:     with(func(c *sshtest.Certificate) { c.Critical = map[string]string{"force-command": "x"} }),
			wantKind: KindHostCertificateInvalid,
		},
		"expired, but its key is pinned": {
			cert:   with(func(c *sshtest.Certificate) { c.ValidBefore = past }),
			pinned: publicKeys(key),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signer := tc.key
			if signer == nil {
				signer = key
			}
			by := authority
			if tc.unlisted {
				by = stranger
			}
			tc.cert.Key = signer.PublicKey()
			certified := sshtest.Certified(t, sshtest.NewCertificate(t, by, tc.cert), signer)
			config := configFor(t, sshtest.New(t, sshtest.Behavior{HostKeys: []ssh.Signer{certified}}))
			config.HostKeys = HostKeyPolicy{Authorities: publicKeys(authority), Pinned: tc.pinned}
			conn, err := Dial(t.Context(), config)
			if KindOf(err) != tc.wantKind {
				t.Fatalf("got %v, want kind %q", err, tc.wantKind)
			}
			if err != nil {
				if e := asError(t, err); e.Seen == nil || Fingerprint(e.Seen) != Fingerprint(signer.PublicKey()) {
					t.Errorf("seen key is %v", e.Seen)
				}
				return
			}
			if Fingerprint(conn.HostKey()) != Fingerprint(signer.PublicKey()) {
				t.Error("HostKey is not the certified key")
			}
			_ = conn.Close()
		})
	}
}

// TestHostCertificateForged: a certificate whose content was changed after signing.
func TestHostCertificateForged(t *testing.T) {
	t.Parallel()
	authority, key := sshtest.NewKey(t), sshtest.NewKey(t)
	cert := sshtest.NewCertificate(t, authority, sshtest.Certificate{
		Type: ssh.HostCert, Key: key.PublicKey(), Principals: []string{"elsewhere"},
	})
	cert.ValidPrincipals = []string{"127.0.0.1"}
	config := configFor(t, sshtest.New(t, sshtest.Behavior{HostKeys: []ssh.Signer{sshtest.Certified(t, cert, key)}}))
	config.HostKeys = HostKeyPolicy{Authorities: publicKeys(authority)}
	if _, err := Dial(t.Context(), config); KindOf(err) != KindHostCertificateInvalid {
		t.Errorf("got %v", err)
	}
}

// TestPinnedBesideAuthority: a host that has no certificate yet is still known by
// its key, and one with neither is not.
func TestPinnedBesideAuthority(t *testing.T) {
	t.Parallel()
	authority, key := sshtest.NewKey(t), sshtest.NewKey(t)
	config := configFor(t, sshtest.New(t, sshtest.Behavior{HostKeys: []ssh.Signer{key}}))
	config.HostKeys = HostKeyPolicy{Authorities: publicKeys(authority), Pinned: publicKeys(key)}
	dialWell(t, config)

	config.HostKeys.Pinned = nil
	_, err := Dial(t.Context(), config)
	if e := asError(t, err); e.Kind != KindHostKeyType || !strings.Contains(e.Detail, "ssh-ed25519") {
		t.Errorf("got %v", err)
	}
}

func TestMatchPrincipal(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		host       string
		principals []string
		want       bool
	}{
		"equal":                  {"mac-2", []string{"mac-1", "mac-2"}, true},
		"case":                   {"MAC-2", []string{"mac-2"}, true},
		"star":                   {"mac-2.example.com", []string{"*.example.com"}, true},
		"question mark":          {"mac-2", []string{"mac-?"}, true},
		"none":                   {"mac-2", []string{"mac-1"}, false},
		"part":                   {"mac-22", []string{"mac-2"}, false},
		"brackets are no class":  {"a", []string{"[a]"}, false},
		"no principals, any":     {"mac-2", nil, true},
		"empty principal is one": {"mac-2", []string{""}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, got := matchPrincipal(tc.host, tc.principals); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
