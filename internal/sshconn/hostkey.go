// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"bytes"
	"net"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// HostKeyPolicy says which host keys are accepted. A policy without keys and
// authorities accepts none, unless FirstUse is set.
type HostKeyPolicy struct {
	// Pinned keys: any of them is accepted, and only their types are asked for.
	Pinned []ssh.PublicKey
	// Authorities: a valid host certificate signed by any of them is accepted.
	Authorities []ssh.PublicKey
	// FirstUse accepts any key where Pinned and Authorities are empty. The
	// caller pins what [Conn.HostKey] reports.
	FirstUse bool
}

// open tells whether no key is known, so that the peer's choice decides.
func (p HostKeyPolicy) open() bool {
	return len(p.Pinned) == 0 && len(p.Authorities) == 0
}

// algorithms lists the host key algorithms to offer: those of the pinned keys'
// types and, with authorities, certificates of every type. Asking only for these
// makes a host with several keys present the expected one. Certificates come
// first, so that a pinned key still serves hosts that have none.
func (p HostKeyPolicy) algorithms() []string {
	supported := ssh.SupportedAlgorithms().HostKeys
	if p.open() {
		// The order decides which key is pinned on first use: ed25519 has the
		// shortest line and every OpenSSH of the last decade has one.
		plain := slices.DeleteFunc(supported, isCertificateAlgorithm)
		slices.SortStableFunc(plain, func(a, b string) int {
			return preference(a) - preference(b)
		})
		return plain
	}
	var out []string
	if len(p.Authorities) > 0 {
		for _, algorithm := range supported {
			if isCertificateAlgorithm(algorithm) {
				out = append(out, algorithm)
			}
		}
	}
	for _, key := range p.Pinned {
		for _, algorithm := range algorithmsOf(key.Type()) {
			if !slices.Contains(out, algorithm) {
				out = append(out, algorithm)
			}
		}
	}
	return out
}

func preference(algorithm string) int {
	switch algorithm {
	case ssh.KeyAlgoED25519:
		return 0
	case ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return 1
	default:
		return 2
	}
}

// algorithmsOf lists the signature algorithms of a key type: an RSA key signs
// with SHA-2 only (RFC 8332), SHA-1 is not offered.
func algorithmsOf(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{keyType}
}

func isCertificateAlgorithm(algorithm string) bool {
	return strings.Contains(algorithm, "-cert-v01")
}

// check decides about the key that the host called host presented.
func (p HostKeyPolicy) check(host string, key ssh.PublicKey) *Error {
	if p.open() {
		if p.FirstUse {
			return nil
		}
		return &Error{Kind: KindHostKeyUnknown, Seen: key}
	}
	if contains(p.Pinned, PlainKey(key)) {
		return nil
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok || len(p.Authorities) == 0 {
		return &Error{Kind: KindHostKeyChanged, Seen: key, Expected: fingerprints(p.Pinned)}
	}
	return p.checkCertificate(host, cert)
}

// checkCertificate applies the rules of OpenSSH's PROTOCOL.certkeys for hosts.
// The order puts first what says most about a misconfiguration.
func (p HostKeyPolicy) checkCertificate(host string, cert *ssh.Certificate) *Error {
	if cert.CertType != ssh.HostCert {
		return &Error{Kind: KindHostCertificateInvalid, Seen: cert, Detail: "it is a user certificate"}
	}
	if !contains(p.Authorities, cert.SignatureKey) {
		return &Error{
			Kind: KindHostCertificateAuthority, Seen: cert,
			Expected: fingerprints(p.Authorities),
			Detail:   "signed by " + Fingerprint(cert.SignatureKey),
		}
	}
	principal, ok := matchPrincipal(host, cert.ValidPrincipals)
	if !ok {
		return &Error{
			Kind: KindHostCertificatePrincipal, Seen: cert,
			Detail: Printable(strings.Join(cert.ValidPrincipals, ", ")),
		}
	}
	now := uint64(max(time.Now().Unix(), 0))
	if now < cert.ValidAfter {
		return &Error{Kind: KindHostCertificateEarly, Seen: cert, Detail: certificateTime(cert.ValidAfter)}
	}
	if cert.ValidBefore != ssh.CertTimeInfinity && now >= cert.ValidBefore {
		return &Error{Kind: KindHostCertificateExpired, Seen: cert, Detail: certificateTime(cert.ValidBefore)}
	}
	checker := ssh.CertChecker{}
	if err := checker.CheckCert(principal, cert); err != nil {
		return &Error{Kind: KindHostCertificateInvalid, Seen: cert, Err: err}
	}
	return nil
}

// matchPrincipal finds the principal that covers host. As in OpenSSH, principals
// of host certificates are patterns with * and ?, and none at all means any host.
func matchPrincipal(host string, principals []string) (string, bool) {
	if len(principals) == 0 {
		return host, true
	}
	host = strings.ToLower(host)
	for _, principal := range principals {
		pattern := strings.ToLower(principal)
		if pattern == host {
			return principal, true
		}
		// path.Match knows more than the two wildcards; a principal that uses
		// its brackets or escapes is compared literally only.
		if strings.ContainsAny(pattern, `[]\/`) {
			continue
		}
		if ok, err := path.Match(pattern, host); err == nil && ok {
			return principal, true
		}
	}
	return "", false
}

func certificateTime(seconds uint64) string {
	const year9999 = 253402300799 // beyond it, dates no longer have four digits
	return time.Unix(int64(min(seconds, year9999)), 0).UTC().Format(time.RFC3339)
}

func contains(keys []ssh.PublicKey, key ssh.PublicKey) bool {
	return slices.ContainsFunc(keys, func(k ssh.PublicKey) bool {
		return bytes.Equal(k.Marshal(), key.Marshal())
	})
}

// hostOf gives the host part of address, which is what certificates name.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}
