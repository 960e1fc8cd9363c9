// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// CheckCredential tells, without connecting anywhere, whether a credential can be
// used to log in at the time given. Neither reason nor message hold any part of it.
func CheckCredential(c Credential, now time.Time) (Reason, string, bool) {
	_, reason, message := parseCredential(c, now)
	return reason, message, reason == ReasonCredentialUsable
}

// parseCredential returns the signer, or why there is none. Keys that only OpenSSH's own
// programs cannot read are refused, too: clients use the same Secrets with these.
func parseCredential(c Credential, now time.Time) (ssh.Signer, Reason, string) {
	unusable := func(reason Reason) (ssh.Signer, Reason, string) {
		return nil, reason, messageCredential(c.Name, reason)
	}
	signer, err := sshconn.ParseKey(c.PrivateKey, c.Certificate)
	switch {
	case err != nil:
		return unusable(credentialReason(err))
	case !validAt(signer, now):
		return unusable(ReasonCertificateOutOfDate)
	}
	if err := sshconn.CheckForm(c.PrivateKey); err != nil {
		return nil, ReasonKeyMalformed, messageKeyForm(c.Name, err)
	}
	return signer, ReasonCredentialUsable, messageCredential(c.Name, ReasonCredentialUsable)
}

// credentialReason maps what sshconn says of a key.
func credentialReason(err error) Reason {
	for _, entry := range []struct {
		err    error
		reason Reason
	}{
		{sshconn.ErrPassphrase, ReasonKeyPassphrase},
		{sshconn.ErrPublicKey, ReasonKeyIsPublic},
		{sshconn.ErrUnsupportedKey, ReasonKeyUnsupported},
		{sshconn.ErrMalformedCertificate, ReasonCertificateMalformed},
		{sshconn.ErrCertificateMismatch, ReasonCertificateMismatch},
	} {
		if errors.Is(err, entry.err) {
			return entry.reason
		}
	}
	return ReasonKeyMalformed
}

// validAt tells whether a signer is a plain key or a certificate within its time.
func validAt(signer ssh.Signer, now time.Time) bool {
	cert, ok := signer.PublicKey().(*ssh.Certificate)
	if !ok {
		return true
	}
	seconds := uint64(max(now.Unix(), 0))
	return seconds >= cert.ValidAfter && (cert.ValidBefore == ssh.CertTimeInfinity || seconds < cert.ValidBefore)
}

// signers are the usable ones among a target's credentials, with their names.
type signers struct {
	list  []ssh.Signer
	names []string
	// reason and message tell about the first unusable one.
	reason  Reason
	message string
}

func parseCredentials(credentials []Credential, now time.Time) signers {
	out := signers{reason: ReasonNoCredential, message: messageCredential("", ReasonNoCredential)}
	for _, c := range credentials {
		signer, reason, message := parseCredential(c, now)
		if reason == ReasonCredentialUsable {
			out.list = append(out.list, signer)
			out.names = append(out.names, c.Name)
		} else if out.reason == ReasonNoCredential {
			out.reason, out.message = reason, message
		}
	}
	return out
}

// CheckHostKey reads a public key line and returns it as "type base64" with its
// fingerprint "SHA256:…". The error does not quote the line, which might hold
// something else than was meant.
func CheckHostKey(line string) (key, fingerprint string, err error) {
	parsed, err := sshconn.ParsePublicKey(line)
	if err != nil {
		return "", "", fmt.Errorf("read host key: %w", err)
	}
	return sshconn.AuthorizedKey(parsed), sshconn.Fingerprint(parsed), nil
}
