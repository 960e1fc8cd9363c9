// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package doctor

import (
	"regexp"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// phrases pair words about a NixBuilder, a cluster and an operator with those for a
// command line. Where two begin alike, the longer one goes first.
func phrases() []string {
	return []string{
		"correct spec.endpoints[].host, or the cluster's DNS", "correct the host in the URI, or look at the DNS here",
		"spec.endpoints[].host", "the host in the URI",
		"spec.endpoints[].port", "the port in the URI",
		"spec.proxyJump.hostCertificateAuthorities demands", "the known_hosts file demands",
		"not among spec.proxyJump.hostCertificateAuthorities", "not among the authorities of the known_hosts file",
		"into spec.proxyJump.hostKeys", "into the known_hosts file",
		"spec.proxyJump.host, or the cluster's DNS", "--proxy-jump, or look at the DNS here",
		"spec.proxyJump.host", "--proxy-jump",
		"spec.proxyJump.port", "--proxy-jump",
		"spec.proxyJump.user", "--proxy-jump",
		"spec.proxyJump", "--proxy-jump",
		"as hostCertificateAuthorities demands", "as the known_hosts file demands",
		"not among hostCertificateAuthorities", "not among the authorities of the known_hosts file",
		"or put its key into hostKeys", "or give its key with --host-key",
		"put its new key into hostKeys", "put its new key in the place of the old one (known_hosts, --host-key, or the machine's line)",
		"hostKeys[0]", "the given host key",
		"spec.remoteProgram", "--remote-program",
		"spec.user", "the user in the URI",
		"spec.systems", "the systems of the machine's line",
		"spec.supportedFeatures or spec.mandatoryFeatures", "the features of the machine's line",
		"spec.supportedFeatures", "the features of the machine's line",
		", or lower spec.thresholds.minFreeSpace", "",
		", or raise the threshold in spec.thresholds", "",
		"spec.thresholds", "what a NixBuilder asks for unless told otherwise",
		"or look at the clock of the operator's node where several", "or look at the clock here where several",
		"the operator's (threshold", "the one here (threshold",
		"from the operator's address", "from this machine's address",
		"clocks of signer and operator", "clocks of signer and this machine",
		"network between the cluster and it", "network between here and it",
		"the cluster's DNS", "the DNS here",
		"keys of Secrets ", "keys ",
		", or take ssh-privatekey-cert.pub out of the Secret to log in", ", or move the certificate away to log in",
		"store a key in it that can", "name another one with --identity",
	}
}

// keyAdvice is what to do about a private key that cannot be used. It is the user's own,
// so nothing is to be done to it.
func keyAdvice(reason probe.Reason) string {
	switch reason {
	case probe.ReasonKeyIsPublic:
		return "name the file without .pub with --identity"
	case probe.ReasonKeyPassphrase, probe.ReasonKeyUnsupported, probe.ReasonKeyMalformed:
		return "name another key with --identity"
	case probe.ReasonCertificateMalformed, probe.ReasonCertificateMismatch:
		return "move that file away, or name another key with --identity"
	case probe.ReasonCertificateOutOfDate:
		return "have a new one signed, or name another key with --identity"
	default:
		return ""
	}
}

// offered matches the key that is shown where none is known.
var offered = regexp.MustCompile(`add to hostKeys: (\S+ \S+)$`)

// local puts what the prober says in terms of a NixBuilder into those of the command
// line: its sources are Secrets and spec, these are files and flags.
func (s *spot) local(outcome *probe.Outcome) string {
	text := outcome.Message
	if advice := keyAdvice(outcome.Reason); advice != "" {
		if end := strings.LastIndex(text, "; "); end >= 0 {
			text = text[:end] + "; " + advice
		}
	}
	text = offered.ReplaceAllString(text, "give it with --host-key '$1', or add it to known_hosts")
	var pairs []string
	for _, credential := range s.target.Credentials {
		file := credential.Name
		pairs = append(pairs,
			"Secret "+file+": ssh-privatekey-cert.pub", file+"-cert.pub",
			"Secret "+file+": in ssh-privatekey, ", file+": ",
			"Secret "+file+": ssh-privatekey ", file+": this file ",
			"certificate of Secret "+file, "certificate beside "+file,
			"key of Secret "+file, "key "+file,
			"with Secret "+file, "with the key "+file,
			"Secret "+file, file)
	}
	return strings.NewReplacer(append(pairs, phrases()...)...).Replace(text)
}
