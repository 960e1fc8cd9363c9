// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/crypto/ssh"
	corev1 "k8s.io/api/core/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// invalid is what all causes have in common that are about the Secret.
func invalid(reason string, words ...string) diagnosis {
	return diagnosis{condition: v1alpha1.ConditionCredentialsValid, reason: reason, words: words}
}

// commands runs the kubectl commands of a message, where the file that they name is
// the right key.
func commands(p *patient, message string) {
	p.Helper()
	key, err := os.ReadFile(p.site.lab.ClientKeyFile())
	if err != nil {
		p.Fatal(err)
	}
	p.must(os.WriteFile(filepath.Join(p.dir, "key"), key, 0o600))
	message = strings.ReplaceAll(message, "<private key file>", "key")
	found := regexp.MustCompile(`kubectl [^,;:()]*`).FindAllString(message, -1)
	if len(found) == 0 {
		p.Fatal("the message has no command")
	}
	for _, command := range found {
		p.shell(command)
	}
}

// secretCauses are about the Secret itself.
func secretCauses() []cause {
	return []cause{
		{
			name: "secret-missing", title: "There is no such Secret",
			mend:   "Make it with the commands in the message, or correct `spec.credentials.secretRefs`.",
			breaks: func(p *patient) { p.dropSecret() },
			want:   invalid("SecretNotFound", "does not exist", "kubectl -n "),
			remedy: commands,
		},
		{
			name: "secret-type", title: "The Secret has another type",
			means: "`kubectl create secret generic` makes Secrets of type `Opaque` unless told otherwise.",
			mend:  "The type of a Secret cannot be changed: delete it, and make it anew with the commands in the message.",
			breaks: func(p *patient) {
				secret := keySecret(p.namespace, p.dropSecret())
				secret.Type = corev1.SecretTypeOpaque
				p.create(secret)
			},
			want:   invalid("SecretWrongType", "has type Opaque", "--type=kubernetes.io/ssh-auth"),
			remedy: commands,
		},
		{
			name: "secret-key-name", title: "The key is under another name in the Secret",
			means: "The API server lets that pass only where the type is another one, too.",
			mend:  "As before: the commands in the message store it under `ssh-privatekey`.",
			breaks: func(p *patient) {
				secret := keySecret(p.namespace, nil)
				secret.Type, secret.Data = corev1.SecretTypeOpaque, map[string][]byte{"id_ed25519": p.dropSecret()}
				p.create(secret)
			},
			want:   invalid("SecretWrongType", "--from-file=ssh-privatekey="),
			remedy: commands,
		},
		{
			name: "secret-label", title: "The Secret is not released for use by builders",
			means:  "Who may make builders in a namespace must not get at all keys in it, so the owner of a key has to release it.",
			mend:   "Label it with the command in the message.",
			breaks: func(p *patient) { p.changeSecret(func(s *corev1.Secret) { s.Labels = nil }) },
			want:   invalid("SecretNotLabelled", "kubectl -n "),
			remedy: commands,
		},
	}
}

// keyCauses are about what is in the Secret.
func keyCauses() []cause {
	set := func(name string, content []byte) func(*corev1.Secret) {
		return func(s *corev1.Secret) { s.Data[name] = content }
	}
	right := func(p *patient, _ string) {
		key, err := os.ReadFile(p.site.lab.ClientKeyFile())
		p.must(err)
		p.changeSecret(func(s *corev1.Secret) {
			s.Data = map[string][]byte{corev1.SSHAuthPrivateKey: key}
		})
	}
	certificate := func(name, title, mend, reason string, content func(*patient) []byte, words ...string) cause {
		return cause{
			name: name, title: title, mend: mend, want: invalid(reason, words...),
			prepare: certifyUser,
			breaks:  func(p *patient) { p.setUserCertificate(content(p)) },
			remedy: func(p *patient, _ string) {
				p.setUserCertificate(p.userCertificate(p.clientKey(), nixlab.TrustedUser, validNow))
			},
		}
	}
	return []cause{
		{
			name: "key-passphrase", title: "The key has a passphrase",
			nixSays: deniedWords,
			mend:    "Store a key without: `ssh-keygen -p -N '' -f FILE`.",
			breaks: func(p *patient) {
				p.must(os.WriteFile(filepath.Join(p.dir, "FILE"), p.clientKey(), 0o600))
				p.changeSecret(set(corev1.SSHAuthPrivateKey, p.encrypted(p.clientKey())))
			},
			want:   invalid("PrivateKeyHasPassphrase", "passphrase", "ssh-keygen -p -N '' -f FILE"),
			remedy: takePassphraseAway,
		},
		{
			name: "key-malformed", title: "The Secret holds something else than a private key",
			means:  "Cut off, or changed when it was copied; a key of PuTTY also looks like that.",
			mend:   "Store the private key as `ssh-keygen` has made it.",
			breaks: func(p *patient) { p.changeSecret(set(corev1.SSHAuthPrivateKey, p.clientKey()[:200])) },
			want:   invalid("PrivateKeyMalformed", "not a private key"),
			remedy: right,
		},
		{
			name: "key-newline", title: "The private key has lost its last newline",
			means:  "As happens when it is copied and pasted. Keys whose lines end as on Windows are the same: the operator could read them, but clients use the same Secret with ssh, which cannot.",
			mend:   "Store the file as `ssh-keygen` has made it, with `--from-file=ssh-privatekey=FILE`.",
			breaks: func(p *patient) { p.changeSecret(set(corev1.SSHAuthPrivateKey, bytes.TrimSpace(p.clientKey()))) },
			want:   invalid("PrivateKeyMalformed", "lacks the newline at its end", "--from-file=ssh-privatekey=FILE"),
			remedy: right,
		},
		{
			name: "key-public", title: "The Secret holds the public key",
			mend: "Store the file without `.pub`.",
			breaks: func(p *patient) {
				signer, err := ssh.ParsePrivateKey(p.clientKey())
				p.must(err)
				p.changeSecret(set(corev1.SSHAuthPrivateKey, ssh.MarshalAuthorizedKey(signer.PublicKey())))
			},
			want:   invalid("PublicKeyInsteadOfPrivate", "store the file without .pub"),
			remedy: right,
		},
		certificate("user-cert-malformed", "The user certificate is none", "Store the file `…-cert.pub` that `ssh-keygen -s` has written, or leave it out.",
			"CertificateMalformed", func(*patient) []byte { return []byte("ssh-ed25519-cert-v01@openssh.com AAAA") }, "not a user certificate"),
		certificate("user-cert-other", "The user certificate belongs to another key", "Store the certificate of the key in the same Secret.",
			"CertificateOfOtherKey", func(p *patient) []byte { return p.userCertificate(p.newKey(), nixlab.TrustedUser, validNow) }, "another private key"),
		certificate("user-cert-expired", "The user certificate has expired", "Sign a new one: `ssh-keygen -s CA -I builders -n nix-ssh -V +52w FILE.pub`.",
			"CertificateOutOfDate", func(p *patient) []byte { return p.userCertificate(p.clientKey(), nixlab.TrustedUser, "-2w:-1w") }, "not valid at this time", "sign a new one"),
	}
}

// takePassphraseAway does what the message says to the key in the Secret.
func takePassphraseAway(p *patient, message string) {
	p.Helper()
	command := regexp.MustCompile(`ssh-keygen -p [^)]*`).FindString(message)
	var secret corev1.Secret
	p.must(p.site.Get(p.Context(), p.secretKey(), &secret))
	p.must(p.WriteFile("/root/FILE", string(secret.Data[corev1.SSHAuthPrivateKey]), 0o600))
	// The old passphrase, which it would ask for.
	p.run("cd /root && " + command + " -P " + passphrase)
	plain := p.run("cat /root/FILE")
	p.changeSecret(func(s *corev1.Secret) { s.Data[corev1.SSHAuthPrivateKey] = []byte(plain) })
}

// clientKey is the private key that the machine accepts.
func (p *patient) clientKey() []byte {
	p.Helper()
	key, err := os.ReadFile(p.site.lab.ClientKeyFile())
	p.must(err)
	return key
}

const passphrase = "sesame"

// newKey makes a private key that nobody knows.
func (p *patient) newKey() []byte {
	p.Helper()
	_, secret, err := ed25519.GenerateKey(rand.Reader)
	p.must(err)
	block, err := ssh.MarshalPrivateKey(secret, "")
	p.must(err)
	return pem.EncodeToMemory(block)
}

// encrypted protects a private key by the passphrase.
func (p *patient) encrypted(key []byte) []byte {
	p.Helper()
	secret, err := ssh.ParseRawPrivateKey(key)
	p.must(err)
	block, err := ssh.MarshalPrivateKeyWithPassphrase(secret, "", []byte(passphrase))
	p.must(err)
	return pem.EncodeToMemory(block)
}

// userCertificate signs a key for a user, with an authority that is made for it.
func (p *patient) userCertificate(key []byte, user, validity string) []byte {
	p.Helper()
	p.must(p.WriteFile("/root/user", string(key), 0o600))
	return []byte(p.run(fmt.Sprintf(`cd /root && ssh-keygen -y -f user >user.pub
[ -e ca ] || ssh-keygen -q -t ed25519 -N '' -f ca
ssh-keygen -q -s ca -I builders -n %s -V %s user.pub && cat user-cert.pub`, user, validity)))
}

func (p *patient) setUserCertificate(certificate []byte) {
	p.Helper()
	p.changeSecret(func(s *corev1.Secret) { s.Data[v1alpha1.CredentialCertificateKey] = certificate })
}

// certifyUser lets the user log in by certificate alone.
func certifyUser(p *patient) {
	p.setUserCertificate(p.userCertificate(p.clientKey(), nixlab.TrustedUser, validNow))
	p.sshd("AuthorizedKeysFile none", "TrustedUserCAKeys /root/ca.pub")
}
