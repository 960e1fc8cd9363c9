// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// NewKey makes an ed25519 key.
func NewKey(tb testing.TB) ssh.Signer {
	tb.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return signer(tb, private, err)
}

// NewECDSAKey makes a key on the curve P-256.
func NewECDSAKey(tb testing.TB) ssh.Signer {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return signer(tb, private, err)
}

// NewRSAKey makes an RSA key of 2048 bits.
func NewRSAKey(tb testing.TB) ssh.Signer {
	tb.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	return signer(tb, private, err)
}

func signer(tb testing.TB, private crypto.PrivateKey, err error) ssh.Signer {
	tb.Helper()
	if err != nil {
		tb.Fatalf("generate key: %v", err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		tb.Fatalf("make signer: %v", err)
	}
	return s
}

// NewKeyFile makes an ed25519 key and returns it as an OpenSSH private key file, with
// its public key.
func NewKeyFile(tb testing.TB) ([]byte, ssh.PublicKey) {
	tb.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatalf("generate key: %v", err)
	}
	block, err := ssh.MarshalPrivateKey(private, "test")
	if err != nil {
		tb.Fatalf("marshal key: %v", err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		tb.Fatalf("make public key: %v", err)
	}
	return pem.EncodeToMemory(block), key
}

// NewLockedKeyFile returns an OpenSSH private key file that is protected by a
// passphrase. Nobody knows it: the encrypted part is random, which spares the costly
// derivation of a real one.
func NewLockedKeyFile(tb testing.TB) []byte {
	tb.Helper()
	secret := make([]byte, 160)
	_, _ = rand.Read(secret)
	text := append([]byte("openssh-key-v1\x00"), ssh.Marshal(struct {
		Cipher, KDF, KDFOptions string
		Keys                    uint32
		Public                  string
		Private                 []byte
	}{
		Cipher: "aes256-ctr", KDF: "bcrypt", KDFOptions: string(secret[:24]),
		Keys: 1, Public: string(NewKey(tb).PublicKey().Marshal()), Private: secret,
	})...)
	return pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: text})
}

// Certificate says what NewCertificate certifies. Zero times mean valid from an hour
// ago, for ever.
type Certificate struct {
	Key         ssh.PublicKey
	Type        uint32 // ssh.HostCert or ssh.UserCert
	Principals  []string
	ValidAfter  time.Time
	ValidBefore time.Time
	Critical    map[string]string
}

// NewCertificate has an authority sign a certificate.
func NewCertificate(tb testing.TB, authority ssh.Signer, c Certificate) *ssh.Certificate {
	tb.Helper()
	cert := &ssh.Certificate{
		Key: c.Key, CertType: c.Type, KeyId: "test", ValidPrincipals: c.Principals,
		ValidAfter:  uint64(time.Now().Add(-time.Hour).Unix()),
		ValidBefore: ssh.CertTimeInfinity,
		Permissions: ssh.Permissions{CriticalOptions: c.Critical},
	}
	if !c.ValidAfter.IsZero() {
		cert.ValidAfter = uint64(c.ValidAfter.Unix())
	}
	if !c.ValidBefore.IsZero() {
		cert.ValidBefore = uint64(c.ValidBefore.Unix())
	}
	if err := cert.SignCert(rand.Reader, authority); err != nil {
		tb.Fatalf("sign certificate: %v", err)
	}
	return cert
}

// Certified combines a key with its certificate.
func Certified(tb testing.TB, cert *ssh.Certificate, key ssh.Signer) ssh.Signer {
	tb.Helper()
	s, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		tb.Fatalf("combine key and certificate: %v", err)
	}
	return s
}
