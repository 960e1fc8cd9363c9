// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// checkJump finds in the jump host's part of a spec what the API server's rules cannot.
func checkJump(jump *v1alpha1.ProxyJump) (reason, message string) {
	if jump == nil {
		return "", ""
	}
	if strings.Contains(jump.Host, ":") {
		if _, err := netip.ParseAddr(jump.Host); err != nil {
			return v1alpha1.ReasonInvalidHost, fmt.Sprintf("proxyJump: host %q is neither a DNS name nor an IP address", jump.Host)
		}
	}
	for _, list := range []struct {
		field, source string
		lines         []string
	}{
		{"hostKeys", "/etc/ssh/ssh_host_ed25519_key.pub on the jump host", jump.HostKeys},
		{"hostCertificateAuthorities", "the authority's .pub file", jump.HostCertificateAuthorities},
	} {
		for n, line := range list.lines {
			if _, _, err := probe.CheckHostKey(line); err != nil {
				return v1alpha1.ReasonInvalidKey, fmt.Sprintf(
					"proxyJump: %s[%d] is not a public key: copy the line from %s", list.field, n, list.source)
			}
		}
	}
	return "", ""
}

// jumpAddress is the jump host's host and port.
func jumpAddress(jump *v1alpha1.ProxyJump) string {
	return net.JoinHostPort(jump.Host, strconv.Itoa(int(cmp.Or(jump.Port, probe.DefaultPort))))
}

// behind tells machines apart that have one address in different networks.
func behind(spec *v1alpha1.NixBuilderSpec) string {
	if spec.ProxyJump == nil {
		return ""
	}
	return " behind " + jumpAddress(spec.ProxyJump)
}

// secretNames lists every Secret that the spec names, once: those for the machines,
// then those for the jump host.
func secretNames(spec *v1alpha1.NixBuilderSpec) []string {
	refs := slices.Clone(spec.Credentials.SecretRefs)
	if spec.ProxyJump != nil && spec.ProxyJump.Credentials != nil {
		refs = append(refs, spec.ProxyJump.Credentials.SecretRefs...)
	}
	var names []string
	for _, ref := range refs {
		if !slices.Contains(names, ref.Name) {
			names = append(names, ref.Name)
		}
	}
	return names
}

// takeCredentials sorts usable Secrets by what they are for. Those for the machines are
// of no use while there is none for the jump host before them.
func (s *scope) takeCredentials(usable map[string]probe.Credential) {
	those := func(refs []v1alpha1.SecretReference) (list []probe.Credential) {
		for _, ref := range refs {
			if credential, ok := usable[ref.Name]; ok {
				list = append(list, credential)
			}
		}
		return list
	}
	spec := &s.builder.Spec
	s.credentials = those(spec.Credentials.SecretRefs)
	if spec.ProxyJump == nil {
		return
	}
	s.jumpCredentials = s.credentials
	if spec.ProxyJump.Credentials != nil {
		s.jumpCredentials = those(spec.ProxyJump.Credentials.SecretRefs)
	}
	if len(s.jumpCredentials) == 0 {
		s.credentials = nil
	}
}

// jump describes the jump host to the prober, nil where there is none.
func (s *scope) jump() *probe.Jump {
	given := s.builder.Spec.ProxyJump
	if given == nil {
		return nil
	}
	return &probe.Jump{
		Host: given.Host, Port: int(given.Port), User: cmp.Or(given.User, s.builder.Spec.User),
		HostKeys: given.HostKeys, CertificateAuthorities: given.HostCertificateAuthorities,
		Credentials: s.jumpCredentials,
	}
}
