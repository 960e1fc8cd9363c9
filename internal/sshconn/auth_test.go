// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

func TestSigners(t *testing.T) {
	t.Parallel()
	first, second, rsa, ecdsa := sshtest.NewKey(t), sshtest.NewKey(t), sshtest.NewRSAKey(t), sshtest.NewECDSAKey(t)
	authority := sshtest.NewKey(t)
	user := sshtest.Certificate{Type: ssh.UserCert, Principals: []string{"nixt"}}
	certify := func(key ssh.Signer, c sshtest.Certificate) ssh.Signer {
		c.Key = key.PublicKey()
		return sshtest.Certified(t, sshtest.NewCertificate(t, authority, c), key)
	}
	expired := user
	expired.ValidBefore = time.Now().Add(-time.Minute)
	tests := map[string]struct {
		signers    []ssh.Signer
		authorized []ssh.PublicKey
		wantUsed   int
		wantKind   Kind
	}{
		"one":                      {signers: []ssh.Signer{first}, authorized: publicKeys(first)},
		"both accepted, first":     {signers: []ssh.Signer{first, second}, authorized: publicKeys(first, second)},
		"new key not yet there":    {signers: []ssh.Signer{first, second}, authorized: publicKeys(second), wantUsed: 1},
		"old key already gone":     {signers: []ssh.Signer{first, second}, authorized: publicKeys(first)},
		"RSA":                      {signers: []ssh.Signer{rsa}, authorized: publicKeys(rsa)},
		"ECDSA":                    {signers: []ssh.Signer{ecdsa}, authorized: publicKeys(ecdsa)},
		"neither":                  {signers: []ssh.Signer{first, second}, authorized: publicKeys(rsa), wantKind: KindAuthRefused},
		"certificate":              {signers: []ssh.Signer{certify(first, user)}},
		"RSA certificate":          {signers: []ssh.Signer{certify(rsa, user)}},
		"expired certificate":      {signers: []ssh.Signer{certify(first, expired)}, wantKind: KindAuthRefused},
		"expired, then a good key": {signers: []ssh.Signer{certify(first, expired), second}, authorized: publicKeys(second), wantUsed: 1},
		"foreign signer":           {signers: []ssh.Signer{plainSigner{first}}, authorized: publicKeys(first)},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := configFor(t, sshtest.New(t, sshtest.Behavior{
				AuthorizedKeys: tc.authorized, UserAuthorities: publicKeys(authority), Users: []string{"nixt"},
			}))
			config.Signers = tc.signers
			conn, err := Dial(t.Context(), config)
			if KindOf(err) != tc.wantKind {
				t.Fatalf("got %v, want kind %q", err, tc.wantKind)
			}
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			if conn.Signer() != tc.wantUsed {
				t.Errorf("logged in with signer %d, want %d", conn.Signer(), tc.wantUsed)
			}
		})
	}
}

// plainSigner hides all but the basic interface, as a remote signer may have.
type plainSigner struct{ signer ssh.Signer }

func (s plainSigner) PublicKey() ssh.PublicKey { return s.signer.PublicKey() }

func (s plainSigner) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return s.signer.Sign(rand, data)
}

// brokenSigner stands for a signer that is elsewhere and away.
type brokenSigner struct{ ssh.Signer }

var errSignerAway = errors.New("signer away")

func (brokenSigner) Sign(io.Reader, []byte) (*ssh.Signature, error) { return nil, errSignerAway }

func TestSignerFails(t *testing.T) {
	t.Parallel()
	config := configFor(t, sshtest.New(t, sshtest.Behavior{}))
	config.Signers = []ssh.Signer{brokenSigner{sshtest.NewKey(t)}}
	_, err := Dial(t.Context(), config)
	if KindOf(err) != KindNoUsableKey || !errors.Is(err, errSignerAway) {
		t.Errorf("got %v", err)
	}
}
