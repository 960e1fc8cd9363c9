// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"fmt"
	"iter"
	"regexp"
	"slices"
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

// maxQuoted is the most bytes of an annotation that a message shows of it.
const maxQuoted = 64

// entriesOf splits the annotation nixbuilder.io/accept-host-key.
func entriesOf(annotation string) iter.Seq[string] {
	return strings.FieldsFuncSeq(annotation, func(r rune) bool { return r == ',' || r == ' ' })
}

// acceptedFingerprint returns the fingerprint that the annotation
// nixbuilder.io/accept-host-key allows for an endpoint, or "".
func acceptedFingerprint(annotation, endpoint string) string {
	for entry := range entriesOf(annotation) {
		if name, accepted, ok := strings.Cut(entry, "="); ok && name == endpoint {
			return strings.TrimRight(accepted, "=")
		}
	}
	return ""
}

// fingerprintPattern is what ssh-keygen -l shows of a key.
var fingerprintPattern = regexp.MustCompile(`^SHA256:[A-Za-z0-9+/]{43}$`)

// annotationMistake tells why the annotation nixbuilder.io/accept-host-key does not
// help an endpoint whose host key is not accepted, or returns "" if it does, is not
// about it, or only is left over from the key before.
func annotationMistake(builder *v1alpha1.NixBuilder, endpoint *v1alpha1.Endpoint, facts probe.Facts) string {
	annotation := builder.Annotations[v1alpha1.AcceptHostKeyAnnotation]
	accepted := acceptedFingerprint(annotation, endpoint.Name)
	pin := ""
	if status := builder.Status.Endpoint(endpoint.Name); status != nil {
		pin = fingerprint(status.HostKey)
	}
	switch {
	case accepted == "":
		return strayEntry(builder, annotation)
	case !usesPin(&builder.Spec, endpoint):
		return "the endpoint is held to the keys and authorities of the spec"
	case !fingerprintPattern.MatchString(accepted):
		return fmt.Sprintf("%q is no fingerprint as ssh-keygen -l shows it (SHA256:…)", clip(accepted, maxQuoted))
	case accepted == pin, accepted == facts.OfferedHostKeyFingerprint:
		return ""
	}
	return accepted + " is not the key seen"
}

// strayEntry complains of the first entry of the annotation that is about no endpoint.
func strayEntry(builder *v1alpha1.NixBuilder, annotation string) string {
	for entry := range entriesOf(annotation) {
		name, _, ok := strings.Cut(entry, "=")
		if !ok {
			return fmt.Sprintf("%q is not of the form ENDPOINT=SHA256:…", clip(entry, maxQuoted))
		}
		if !slices.ContainsFunc(builder.Spec.Endpoints, func(e v1alpha1.Endpoint) bool { return e.Name == name }) {
			return fmt.Sprintf("there is no endpoint %q", clip(name, maxQuoted))
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
