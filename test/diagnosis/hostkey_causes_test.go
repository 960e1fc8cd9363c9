// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"fmt"
	"regexp"
	"strings"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// changedWords is what ssh prints about a host key that it does not expect.
const changedWords = "`REMOTE HOST IDENTIFICATION HAS CHANGED!` … `Host key verification failed.`"

// trustFirst has a builder trust the host key seen first.
func trustFirst(spec *v1alpha1.NixBuilderSpec) {
	spec.HostKeyPolicy = v1alpha1.HostKeyTrustOnFirstUse
	spec.Endpoints[0].HostKeys = nil
}

// changeHostKey gives the machine a new host key, as installing it anew does.
func (p *patient) changeHostKey(kind string) {
	p.Helper()
	p.run(fmt.Sprintf("rm /etc/ssh/lab_hostkey && ssh-keygen -q -t %s -N '' -f /etc/ssh/lab_hostkey", kind))
	p.sshd()
}

// learnHostKey puts what the machine says of its host key into the spec.
func (p *patient) learnHostKey() {
	p.Helper()
	line := strings.Join(strings.Fields(p.run("cat /etc/ssh/lab_hostkey.pub"))[:2], " ")
	p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.Endpoints[0].HostKeys = []string{line} })
}

// acceptHostKey runs the command that the message prints.
func acceptHostKey(p *patient, message string) {
	p.Helper()
	command := regexp.MustCompile(`"(kubectl [^"]*annotate[^"]*)"`).FindStringSubmatch(message)
	if command == nil {
		p.Fatal("the message has no command")
	}
	if !strings.Contains(p.run("ssh-keygen -lf /etc/ssh/lab_hostkey"), regexp.MustCompile(`SHA256:\S+$`).FindString(command[1])) {
		p.Errorf("the key in %s is not the machine's", command[1])
	}
	p.shell(command[1])
}

func hostKeyCauses() []cause {
	verified := v1alpha1.ConditionHostKeyVerified
	return []cause{
		{
			name: "key-changed", title: "The machine presents another host key",
			means:   "Either the machine was installed anew, or somebody is in between. It is never connected to meanwhile.",
			nixSays: changedWords,
			mend:    "If the machine was installed anew: put the content of its `/etc/ssh/ssh_host_ed25519_key.pub` into `spec.endpoints[].hostKeys`.",
			breaks:  func(p *patient) { p.changeHostKey("ed25519") },
			want:    diagnosis{condition: verified, reason: "HostKeyChanged", words: []string{"HOST KEY CHANGED", "put its new key into hostKeys"}},
			remedy:  func(p *patient, _ string) { p.learnHostKey() },
		},
		{
			name: "key-changed-pinned", title: "The machine presents another host key than the one pinned",
			means:   "The same under `hostKeyPolicy: TrustOnFirstUse`.",
			nixSays: changedWords,
			mend:    "Compare the key with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on the machine, and run the command in the message.",
			spec:    trustFirst,
			breaks:  func(p *patient) { p.changeHostKey("ed25519") },
			want:    diagnosis{condition: verified, reason: "HostKeyChanged", words: []string{"HOST KEY CHANGED", "kubectl -n "}},
			remedy:  acceptHostKey,
		},
		{
			name: "key-type", title: "The machine has no host key of the expected type",
			means:   "It has a host key, but not one of the type that was given, say since its ed25519 key was removed.",
			nixSays: changedWords,
			mend:    "Put the content of one of its `/etc/ssh/ssh_host_*_key.pub` into `spec.endpoints[].hostKeys`.",
			breaks:  func(p *patient) { p.changeHostKey("ecdsa") },
			want:    diagnosis{condition: verified, reason: "HostKeyOfOtherType", words: []string{"no key of the expected type", "ecdsa-sha2-nistp256", "put its new key into hostKeys"}},
			remedy:  func(p *patient, _ string) { p.learnHostKey() },
		},
		{
			name: "key-type-pinned", title: "The machine has no host key of the pinned type",
			means:   "The same under `hostKeyPolicy: TrustOnFirstUse`.",
			nixSays: changedWords,
			mend:    "Compare the key with what `ssh-keygen -lf` prints on the machine, and run the command in the message.",
			spec:    trustFirst,
			breaks:  func(p *patient) { p.changeHostKey("rsa") },
			want:    diagnosis{condition: verified, reason: "HostKeyOfOtherType", words: []string{"no key of the expected type", "kubectl -n "}},
			remedy:  acceptHostKey,
		},
	}
}

// The files of host certificates on the machine. The authority's key is there, too,
// since ssh-keygen is.
const (
	certify = `cd /etc/ssh && ssh-keygen -y -f lab_hostkey >lab_hostkey.pub
[ -e ca ] || ssh-keygen -q -t ed25519 -N '' -f ca
[ -e other ] || ssh-keygen -q -t ed25519 -N '' -f other
ssh-keygen -q -s %s -I linux-1 -h -n %s -V %s lab_hostkey.pub`
	validNow = "-1h:+1w"
)

// certifyHost gives the machine a host certificate.
func (p *patient) certifyHost(authority, name, validity string) {
	p.Helper()
	p.run(fmt.Sprintf(certify, authority, name, validity))
	p.sshd("HostCertificate /etc/ssh/lab_hostkey-cert.pub")
}

// trustAuthority has the builder accept host certificates of the authority alone. It
// is the machine's, so it is known only once the machine is there.
func trustAuthority(p *patient) {
	p.certifyHost("ca", p.IP(), validNow)
	authority := strings.Join(strings.Fields(p.run("cat /etc/ssh/ca.pub"))[:2], " ")
	p.respec = func(spec *v1alpha1.NixBuilderSpec) {
		spec.HostCertificateAuthorities = []string{authority}
		spec.Endpoints[0].HostKeys = nil
	}
}

func hostCertificateCauses() []cause {
	certificate := func(reason string, words ...string) diagnosis {
		return diagnosis{condition: v1alpha1.ConditionHostKeyVerified, reason: reason, words: words}
	}
	// sign signs as the message says.
	sign := func(p *patient, _ string) { p.certifyHost("ca", p.IP(), validNow) }
	const nixSays = "`Host key verification failed.`"
	return []cause{
		{
			name: "host-cert-expired", title: "The host certificate has expired",
			nixSays: nixSays, prepare: trustAuthority, fromHere: nowhere,
			mend:   "Sign a new one with `ssh-keygen -s CA -I linux-1 -h -n linux-1.example.com -V +52w ssh_host_ed25519_key.pub` and restart sshd.",
			breaks: func(p *patient) { p.certifyHost("ca", p.IP(), "-2w:-1w") },
			want:   certificate("HostCertificateExpired", "expired at", "sign a new one"),
			remedy: sign,
		},
		{
			name: "host-cert-early", title: "The host certificate is not valid yet",
			nixSays: nixSays, prepare: trustAuthority, fromHere: nowhere,
			mend:   "Look at the clock of the machine that signed it; sign a new one where that was wrong, and restart sshd.",
			breaks: func(p *patient) { p.certifyHost("ca", p.IP(), "+1w:+2w") },
			want:   certificate("HostCertificateNotYetValid", "not valid before", "look at the clocks"),
			remedy: sign,
		},
		{
			name: "host-cert-name", title: "The host certificate is for another name",
			means:   "A host certificate covers names, and `spec.endpoints[].host` is none of them, as it stands there: a DNS name does not cover its address.",
			nixSays: nixSays, prepare: trustAuthority, fromHere: nowhere,
			mend:   "Sign one for that name (`ssh-keygen -h -n …`), or write the name that it covers into `host`.",
			breaks: func(p *patient) { p.certifyHost("ca", "linux-2.example.com", validNow) },
			want:   certificate("HostCertificateForOtherName", `is for "linux-2.example.com"`, "ssh-keygen -h -n"),
			remedy: sign,
		},
		{
			name: "host-cert-authority", title: "The host certificate is of another authority",
			nixSays: nixSays, prepare: trustAuthority, fromHere: nowhere,
			mend:   "Add the authority's public key to `spec.hostCertificateAuthorities` if it is yours, or sign with one that is listed.",
			breaks: func(p *patient) { p.certifyHost("other", p.IP(), validNow) },
			want:   certificate("HostCertificateAuthorityUnknown", "not among hostCertificateAuthorities"),
			remedy: func(p *patient, _ string) {
				other := strings.Join(strings.Fields(p.run("cat /etc/ssh/other.pub"))[:2], " ")
				p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) {
					spec.HostCertificateAuthorities = append(spec.HostCertificateAuthorities, other)
				})
			},
		},
		{
			name: "host-cert-missing", title: "The machine has no host certificate",
			nixSays: nixSays, prepare: trustAuthority, fromHere: nowhere,
			mend:   "Sign one and name it as `HostCertificate` in sshd_config, or put the machine's key into `spec.endpoints[].hostKeys`.",
			breaks: func(p *patient) { p.sshd() },
			want:   certificate("HostCertificateMissing", "presents no certificate", "put its key into hostKeys"),
			remedy: func(p *patient, _ string) { p.learnHostKey() },
		},
	}
}
