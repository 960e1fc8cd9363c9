// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

func TestParseKey(t *testing.T) {
	t.Parallel()
	good, public := sshtest.NewKeyFile(t)
	locked := sshtest.NewLockedKeyFile(t)
	other, _ := sshtest.NewKeyFile(t)
	signer, err := ParseKey(good, nil)
	if err != nil {
		t.Fatal(err)
	}
	authority := sshtest.NewKey(t)
	certificate := func(kind uint32) []byte {
		return ssh.MarshalAuthorizedKey(sshtest.NewCertificate(t, authority, sshtest.Certificate{
			Key: signer.PublicKey(), Type: kind, Principals: []string{"nixt"},
		}))
	}
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		key, cert []byte
		want      error
		wantType  string
	}{
		"OpenSSH":               {key: good, wantType: ssh.KeyAlgoED25519},
		"PKCS8":                 {key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), wantType: ssh.KeyAlgoECDSA384},
		"Windows line ends":     {key: bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), wantType: ssh.KeyAlgoED25519},
		"no newline at the end": {key: bytes.TrimSpace(good), wantType: ssh.KeyAlgoED25519},
		"with certificate":      {key: good, cert: certificate(ssh.UserCert), wantType: ssh.CertAlgoED25519v01},
		"blank certificate":     {key: good, cert: []byte(" \n"), wantType: ssh.KeyAlgoED25519},
		"passphrase":            {key: locked, want: ErrPassphrase},
		"passphrase, PEM":       {key: []byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"), want: ErrPassphrase},
		"passphrase, PKCS8":     {key: pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: pkcs8}), want: ErrPassphrase},
		"public key":            {key: ssh.MarshalAuthorizedKey(public), want: ErrPublicKey},
		"empty":                 {want: ErrMalformedKey},
		"text":                  {key: []byte("swordfish"), want: ErrMalformedKey},
		"cut off":               {key: append(good[:len(good)/2:len(good)/2], "\n-----END OPENSSH PRIVATE KEY-----\n"...), want: ErrMalformedKey},
		"huge":                  {key: bytes.Repeat([]byte("a"), maxKeyText+1), want: ErrMalformedKey},
		"other key's cert":      {key: other, cert: certificate(ssh.UserCert), want: ErrCertificateMismatch},
		"host certificate":      {key: good, cert: certificate(ssh.HostCert), want: ErrMalformedCertificate},
		"key as certificate":    {key: good, cert: ssh.MarshalAuthorizedKey(public), want: ErrMalformedCertificate},
		"text as certificate":   {key: good, cert: []byte("swordfish"), want: ErrMalformedCertificate},
		"huge certificate":      {key: good, cert: bytes.Repeat([]byte("a"), maxKeyText+1), want: ErrMalformedCertificate},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signer, err := ParseKey(tc.key, tc.cert)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err != nil {
				if leaked := leak(err.Error(), tc.key); leaked != "" {
					t.Errorf("the error holds a part of the key: %q", leaked)
				}
				return
			}
			if got := signer.PublicKey().Type(); got != tc.wantType {
				t.Errorf("type is %q, want %q", got, tc.wantType)
			}
		})
	}
}

// CheckForm refuses what ssh itself refuses to read.
func TestCheckForm(t *testing.T) {
	t.Parallel()
	file, _ := sshtest.NewKeyFile(t)
	good := string(file)
	crlf := func(text string) string { return strings.ReplaceAll(text, "\n", "\r\n") }
	const other = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"
	tests := map[string]struct {
		text string
		want error
	}{
		"as made":                 {good, nil},
		"blank lines around":      {"\n" + good + "\n\n", nil},
		"text after it":           {good + "hello\n", nil},
		"no newline at the end":   {strings.TrimSpace(good), ErrNoFinalNewline},
		"Windows line ends":       {crlf(good), ErrLineEnds},
		"and no newline":          {crlf(strings.TrimSpace(good)), ErrLineEnds},
		"on the last line":        {strings.TrimSpace(good) + "\r\n", ErrLineEnds},
		"blank at the end":        {strings.TrimSpace(good) + " ", ErrAroundKey},
		"text before it":          {"Comment: x\n" + good, ErrAroundKey},
		"blank on the first line": {strings.Replace(good, "\n", " \n", 1), ErrAroundKey},
		"PEM, whatever its lines": {crlf(other), nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := CheckForm([]byte(tc.text)); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// leak looks for eight or more characters of a key in text: as stored, or in base64
// once more, as a Secret's manifest holds it.
func leak(text string, key []byte) string {
	const part = 8
	for _, form := range []string{string(key), base64.StdEncoding.EncodeToString(key)} {
		for line := range strings.Lines(form) {
			if strings.HasPrefix(line, "-----") {
				continue
			}
			for i := 0; i+part <= len(line); i++ {
				if strings.Contains(text, line[i:i+part]) {
					return line[i : i+part]
				}
			}
		}
	}
	return ""
}

func TestParsePublicKey(t *testing.T) {
	t.Parallel()
	key := sshtest.NewKey(t).PublicKey()
	line := AuthorizedKey(key)
	cert := sshtest.NewCertificate(t, sshtest.NewKey(t), sshtest.Certificate{Key: key, Type: ssh.HostCert})
	tests := map[string]struct {
		line string
		ok   bool
	}{
		"plain":                {line, true},
		"comment":              {line + " root@mac-2", true},
		"blanks":               {" " + line + "\n", true},
		"as in known_hosts":    {"mac-2,10.0.0.5 " + line, true},
		"known_hosts, port":    {"[mac-2]:2222 " + line, true},
		"authority's line":     {"@cert-authority *.example.com " + line, true},
		"revoked":              {"@revoked * " + line, false},
		"empty":                {"", false},
		"text":                 {"SHA256:abc", false},
		"cut off":              {line[:30], false},
		"certificate":          {AuthorizedKey(cert), false},
		"two lines":            {line + "\n" + line, false},
		"two known_hosts keys": {"a " + line + "\nb " + line, false},
		"huge":                 {strings.Repeat("x", maxKeyText+1), false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParsePublicKey(tc.line)
			if (err == nil) != tc.ok {
				t.Fatalf("got %v", err)
			}
			if tc.ok && AuthorizedKey(got) != line {
				t.Errorf("got %s, want %s", AuthorizedKey(got), line)
			}
			if err != nil && !errors.Is(err, ErrMalformedPublicKey) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ text, want string }{
		"plain":           {"bash: nix-daemon: not found", "bash: nix-daemon: not found"},
		"newlines":        {"  a\r\n\tb \n", "a b"},
		"escape":          {"\x1b[31merror\x1b[0m", "[31merror [0m"},
		"not UTF-8":       {"a\xff\xfeb", "a b"},
		"direction marks": {"a\u202eb", "a b"},
		"umlauts":         {strings.Repeat("ä", 64), strings.Repeat("ä", 64)},
		"just too long":   {strings.Repeat("ä", 65), strings.Repeat("ä", 63) + "…"},
		"cut at a blank":  {strings.Repeat("a", 62) + " bcd", strings.Repeat("a", 62) + "…"},
		"nothing":         {"\x00\x01", ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := Printable(tc.text)
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if n := len([]rune(got)); n > MaxText {
				t.Errorf("%d characters", n)
			}
		})
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("bash: nix-daemon: not found")
	f.Add(strings.Repeat("ä ", 100))
	f.Add("\x1b[31m\xff\u202e")
	f.Fuzz(func(t *testing.T, text string) {
		got := Printable(text)
		if !utf8.ValidString(got) || utf8.RuneCountInString(got) > MaxText || got != strings.TrimSpace(got) {
			t.Errorf("%q becomes %q", text, got)
		}
		if strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q becomes %q", text, got)
		}
		if again := Printable(got); again != got {
			t.Errorf("%q becomes %q, and that %q", text, got, again)
		}
	})
}
