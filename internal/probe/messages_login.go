// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Messages of StepAuthenticated.

func messageLoggedIn(t *Target, credential string) string {
	if credential == "" {
		return t.says("logged in as %s; the SSH server asks for no key", t.User)
	}
	return t.says("logged in as %s with Secret %s", t.User, credential)
}

func messageCredential(name string, reason Reason) string {
	switch reason {
	case ReasonNoCredential:
		return "no Secret with a private key is given"
	case ReasonCredentialUsable:
		return fmt.Sprintf("Secret %s: the private key can be used", name)
	case ReasonKeyPassphrase:
		return fmt.Sprintf("Secret %s: the private key is protected by a passphrase, which nobody can type; store one without (ssh-keygen -p -N '' -f FILE)", name)
	case ReasonKeyIsPublic:
		return fmt.Sprintf("Secret %s: ssh-privatekey holds the public key; store the file without .pub", name)
	case ReasonKeyUnsupported:
		return fmt.Sprintf("Secret %s: the private key's type is no longer supported; make a new one (ssh-keygen -t ed25519)", name)
	case ReasonCertificateMalformed:
		return fmt.Sprintf("Secret %s: ssh-privatekey-cert.pub is not a user certificate; store the file …-cert.pub that ssh-keygen -s writes, or leave it out", name)
	case ReasonCertificateMismatch:
		return fmt.Sprintf("Secret %s: ssh-privatekey-cert.pub belongs to another private key; store the certificate of the key in ssh-privatekey, or leave it out", name)
	case ReasonCertificateOutOfDate:
		return fmt.Sprintf("Secret %s: the certificate is not valid at this time; sign a new one (ssh-keygen -s CA -I ID -n USER -V +52w FILE.pub)", name)
	default:
		return fmt.Sprintf("Secret %s: ssh-privatekey is not a private key in OpenSSH or PEM form; store the file as ssh-keygen has made it, whole", name)
	}
}

// messageKeyForm is about a key that OpenSSH's own programs cannot read.
func messageKeyForm(name string, err error) string {
	return fmt.Sprintf("Secret %s: in ssh-privatekey, %v, so that ssh itself cannot read it (\"error in libcrypto\"); store the file as ssh-keygen has made it, with --from-file=ssh-privatekey=FILE", name, err)
}

func messageLogin(t *Target, reason Reason, names []string, detail string) string {
	tried := keysOf(names)
	switch reason {
	case ReasonAuthRefused:
		return messageRefused(t, signers{names: names}, detail)
	case ReasonAuthDropped:
		return t.says("sshd closes the connection at login as %s%s; look at its log, and at LoginGraceTime, MaxAuthTries, MaxStartups and PerSourcePenalties in its sshd_config", t.User, parenthesis(detail))
	case ReasonAuthTimeout:
		return t.says("sshd does not answer the login as %s within %s; look at its log for what it waits for (AuthorizedKeysCommand, PAM, name lookups, a full disk)", t.User, t.Timeout)
	case ReasonSigningFailed:
		return t.says("%s could not sign the login", tried)
	default:
		return t.says("the SSH server breaks the protocol at login%s", parenthesis(detail))
	}
}

// messageRefused shows the public key that is to be added, where it is short.
func messageRefused(t *Target, keys signers, detail string) string {
	tried := keysOf(keys.names)
	switch {
	case strings.HasPrefix(detail, sshconn.DetailAlsoAsks):
		return t.says("login as %s: sshd accepts %s, but %s, which nobody can type; set \"AuthenticationMethods publickey\" for that user in its sshd_config",
			t.User, tried, sshconn.Printable(detail))
	case strings.HasPrefix(detail, sshconn.DetailNoKeys):
		return t.says("login as %s refused: sshd %s; set \"PubkeyAuthentication yes\" for that user in its sshd_config", t.User, sshconn.Printable(detail))
	}
	var first ssh.PublicKey
	if len(keys.list) > 0 {
		first = keys.list[0].PublicKey()
	}
	if certificate, ok := first.(*ssh.Certificate); ok {
		return t.says("login as %s refused with the certificate of Secret %s, which is for %s and signed by %s%s; sign it for %s, "+
			"have TrustedUserCAKeys in the sshd_config name a file with that authority's public key, or take ssh-privatekey-cert.pub out of the Secret to log in with the key alone; %s",
			t.User, keys.names[0], quoted(strings.Join(certificate.ValidPrincipals, ", "), "nobody"), sshconn.Fingerprint(certificate.SignatureKey), parenthesis(detail), t.User, otherwiseRefused)
	}
	line := "its public key"
	if first != nil {
		if key := sshconn.AuthorizedKey(first); len(key) <= maxKeyLine {
			line = "\"" + key + "\""
		}
	}
	return t.says("login as %s refused with %s%s; add %s to ~%s/.ssh/authorized_keys there, or correct spec.user; %s",
		t.User, tried, parenthesis(detail), line, t.User, otherwiseRefused)
}

// otherwiseRefused is what else there may be. From outside all that looks the same.
const otherwiseRefused = "where that is right, sshd's log says why (AllowUsers or DenyUsers, another AuthorizedKeysFile, from=, a locked account, " +
	"or a home directory or file of keys that others may write to: chmod go-w)"

// maxKeyLine is the length in bytes of the longest public key that is put into a
// message: it leaves out RSA.
const maxKeyLine = 160

// keysOf names the keys of Secrets in a sentence.
func keysOf(names []string) string {
	if len(names) == 1 {
		return "the key of Secret " + names[0]
	}
	return "the keys of Secrets " + strings.Join(names, ", ")
}
