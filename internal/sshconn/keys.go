// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// The ways in which a private key or its certificate can be unusable. They carry
// no part of the key.
var (
	// ErrPassphrase: the key is encrypted; nobody is there to type a passphrase.
	ErrPassphrase = errors.New("the private key is protected by a passphrase")
	// ErrMalformedKey: the text is not a private key in PEM or OpenSSH form.
	ErrMalformedKey = errors.New("the private key is malformed")
	// ErrPublicKey: the text is a public key.
	ErrPublicKey = errors.New("the text is a public key, not a private one")
	// ErrUnsupportedKey: the key is well formed but of a type not supported (DSA).
	ErrUnsupportedKey = errors.New("the private key's type is not supported")
	// ErrMalformedCertificate: the text is not a user certificate.
	ErrMalformedCertificate = errors.New("the certificate is malformed or not one for users")
	// ErrCertificateMismatch: the certificate is for another key.
	ErrCertificateMismatch = errors.New("the certificate does not belong to the private key")
	// ErrNoFinalNewline: OpenSSH's own programs cannot read the private key, because its
	// last line has no end.
	ErrNoFinalNewline = errors.New("the private key lacks the newline at its end")
	// ErrLineEnds: the same, because its lines end as on Windows.
	ErrLineEnds = errors.New("the private key has CRLF line ends")
	// ErrAroundKey: the same, because something else stands before it or at its edges.
	ErrAroundKey = errors.New("the private key has something else on its first or last line, or before it")
	// ErrMalformedPublicKey: the text is not a public key line.
	ErrMalformedPublicKey = errors.New("the public key is malformed")
)

// maxKeyText bounds the text of a key or certificate, in bytes. The longest in
// use (RSA of 16384 bits) is a fifth of it.
const maxKeyText = 64 << 10

// ParseKey reads an unencrypted private key (OpenSSH or PEM) and, unless empty,
// the user certificate that belongs to it (the content of ssh-privatekey-cert.pub).
// Errors are the Err… values of this package and never hold key bytes.
func ParseKey(privateKey, certificate []byte) (ssh.Signer, error) {
	if len(privateKey) > maxKeyText {
		return nil, ErrMalformedKey
	}
	if isPublicKey(privateKey) {
		return nil, ErrPublicKey
	}
	// Causes are dropped on purpose: parsers of other packages may quote input.
	raw, err := ssh.ParseRawPrivateKey(privateKey)
	if err != nil {
		var missing *ssh.PassphraseMissingError
		if errors.As(err, &missing) || isEncryptedPKCS8(privateKey) {
			return nil, ErrPassphrase
		}
		return nil, ErrMalformedKey
	}
	signer, err := ssh.NewSignerFromKey(raw)
	//lint:ignore SA1019 DSA is named here to be refused
	if err != nil || signer.PublicKey().Type() == ssh.InsecureKeyAlgoDSA {
		return nil, ErrUnsupportedKey
	}
	if len(bytes.TrimSpace(certificate)) == 0 {
		return signer, nil
	}
	return withCertificate(signer, certificate)
}

// CheckForm tells whether OpenSSH's own programs can read the text of a private key that
// ParseKey can read: they are strict about the lines that OpenSSH's own form begins and
// ends with. PEM is read by a library that is not. Errors are Err… values of this package.
func CheckForm(privateKey []byte) error {
	const begin, end = "-----BEGIN OPENSSH PRIVATE KEY-----", "-----END OPENSSH PRIVATE KEY-----"
	text := strings.TrimLeft(string(privateKey), "\n")
	before, rest, found := strings.Cut(text, begin)
	if !found {
		return nil
	}
	body, after, _ := strings.Cut(rest, end)
	switch {
	case strings.HasPrefix(body, "\r"), strings.HasPrefix(after, "\r"):
		return ErrLineEnds
	case after == "":
		return ErrNoFinalNewline
	case before != "", !strings.HasPrefix(body, "\n"), !strings.HasPrefix(after, "\n"):
		return ErrAroundKey
	default:
		return nil
	}
}

// isPublicKey recognises a public key line put where a private key belongs.
func isPublicKey(text []byte) bool {
	for _, prefix := range []string{"ssh-", "ecdsa-", "sk-"} {
		if bytes.HasPrefix(bytes.TrimSpace(text), []byte(prefix)) {
			return true
		}
	}
	return false
}

// isEncryptedPKCS8 recognises the PEM form that the ssh package does not know.
func isEncryptedPKCS8(text []byte) bool {
	return bytes.Contains(text, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----"))
}

func withCertificate(signer ssh.Signer, text []byte) (ssh.Signer, error) {
	if len(text) > maxKeyText {
		return nil, ErrMalformedCertificate
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, ErrMalformedCertificate
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok || cert.CertType != ssh.UserCert {
		return nil, ErrMalformedCertificate
	}
	signer, err = ssh.NewCertSigner(cert, signer)
	if err != nil {
		return nil, ErrCertificateMismatch
	}
	return signer, nil
}

// ParsePublicKey reads one public key as people have it at hand: "type base64
// [comment]", a known_hosts line or an authorized_keys line. Certificates are
// refused: a pin or an authority is a plain key.
func ParsePublicKey(line string) (ssh.PublicKey, error) {
	if len(line) > maxKeyText {
		return nil, ErrMalformedPublicKey
	}
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "@revoked") { // the opposite of what keys are wanted for
		return nil, fmt.Errorf("%w: it is marked as revoked", ErrMalformedPublicKey)
	}
	key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		// Not an authorized_keys line; a host name may stand before the key.
		_, _, key, _, rest, err = ssh.ParseKnownHosts([]byte(line))
	}
	if err != nil || len(rest) > 0 {
		return nil, ErrMalformedPublicKey
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return nil, fmt.Errorf("%w: it is a certificate", ErrMalformedPublicKey)
	}
	return key, nil
}

// AuthorizedKey renders a key as "type base64", without comment or newline.
func AuthorizedKey(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}

// Fingerprint renders a key's fingerprint as OpenSSH does: "SHA256:…". Of a
// certificate it is that of the certified key.
func Fingerprint(key ssh.PublicKey) string {
	return ssh.FingerprintSHA256(PlainKey(key))
}

// PlainKey gives the key that a certificate certifies, and any other key itself.
func PlainKey(key ssh.PublicKey) ssh.PublicKey {
	if cert, ok := key.(*ssh.Certificate); ok {
		return cert.Key
	}
	return key
}

func fingerprints(keys []ssh.PublicKey) []string {
	out := make([]string, 0, len(keys))
	for _, key := range keys {
		out = append(out, Fingerprint(key))
	}
	return out
}
