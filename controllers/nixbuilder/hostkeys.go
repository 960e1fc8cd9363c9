// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"strings"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// fingerprint returns the fingerprint of a public key line as ssh-keygen -l
// shows it, or "" if there is no key.
func fingerprint(line string) string {
	_, sum, err := probe.CheckHostKey(line)
	if err != nil {
		return ""
	}
	return sum
}

// acceptedFingerprint returns the fingerprint that the annotation
// nixbuilder.io/accept-host-key allows for an endpoint, or "".
func acceptedFingerprint(annotation, endpoint string) string {
	for entry := range strings.FieldsFuncSeq(annotation, func(r rune) bool { return r == ',' || r == ' ' }) {
		if name, accepted, ok := strings.Cut(entry, "="); ok && name == endpoint {
			return strings.TrimRight(accepted, "=")
		}
	}
	return ""
}

// usesPin reports whether an endpoint is held to the key that it showed first.
// Keys and authorities of the spec go before any pin.
func usesPin(spec *v1alpha1.NixBuilderSpec, endpoint *v1alpha1.Endpoint) bool {
	return spec.HostKeyPolicy == v1alpha1.HostKeyTrustOnFirstUse &&
		len(endpoint.HostKeys) == 0 && len(spec.HostCertificateAuthorities) == 0
}

// pinFor returns the host key that an endpoint is to be held to, "" before one
// was seen. It is the one recorded in status, unless the user has accepted the
// one that the machine offers instead, or has shown already since.
func pinFor(builder *v1alpha1.NixBuilder, endpoint string, facts probe.Facts) string {
	var pin string
	if status := builder.Status.Endpoint(endpoint); status != nil {
		pin = status.HostKey
	}
	accepted := acceptedFingerprint(builder.Annotations[v1alpha1.AcceptHostKeyAnnotation], endpoint)
	switch {
	case pin == "":
		return facts.HostKey
	case accepted != "" && accepted == facts.OfferedHostKeyFingerprint:
		return facts.OfferedHostKey
	case accepted != "" && accepted == facts.HostKeyFingerprint:
		return facts.HostKey
	}
	return pin
}
