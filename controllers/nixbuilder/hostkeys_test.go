// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

func TestAcceptedFingerprint(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		annotation string
		want       string
	}{
		"no annotation":       {},
		"this endpoint":       {annotation: "a=SHA256:abc", want: "SHA256:abc"},
		"among others":        {annotation: "b=SHA256:xyz, a=SHA256:abc,c=SHA256:uvw", want: "SHA256:abc"},
		"another endpoint":    {annotation: "ab=SHA256:abc"},
		"with base64 padding": {annotation: "a=SHA256:abc=", want: "SHA256:abc"},
		"no fingerprint":      {annotation: "a"},
		"nothing after =":     {annotation: "a="},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := acceptedFingerprint(tc.annotation, "a"); got != tc.want {
				t.Errorf("acceptedFingerprint(%q) = %q, want %q", tc.annotation, got, tc.want)
			}
		})
	}
}

func TestPinFor(t *testing.T) {
	t.Parallel()
	first, second := builders.HostKey("first"), builders.HostKey("second")
	offersSecond := probe.Facts{OfferedHostKey: second, OfferedHostKeyFingerprint: fingerprint(second)}

	tests := map[string]struct {
		pinned     string
		annotation string
		facts      probe.Facts
		want       string
	}{
		"nothing seen":                        {},
		"first use":                           {facts: probe.Facts{HostKey: first}, want: first},
		"pinned":                              {pinned: first, facts: probe.Facts{HostKey: first}, want: first},
		"another key is offered":              {pinned: first, facts: offersSecond, want: first},
		"another key is offered and accepted": {pinned: first, annotation: "a=" + fingerprint(second), facts: offersSecond, want: second},
		"accepted and shown since, not written yet": {pinned: first, annotation: "a=" + fingerprint(second), facts: probe.Facts{HostKey: second, HostKeyFingerprint: fingerprint(second)}, want: second},
		"accepted for another endpoint":             {pinned: first, annotation: "b=" + fingerprint(second), facts: offersSecond, want: first},
		"a third key is accepted":                   {pinned: first, annotation: "a=" + fingerprint(builders.HostKey("third")), facts: offersSecond, want: first},
		"accepted long ago":                         {pinned: second, annotation: "a=" + fingerprint(second), facts: probe.Facts{HostKey: second}, want: second},
		"accepted long ago, the old one offers":     {pinned: second, annotation: "a=" + fingerprint(second), facts: probe.Facts{OfferedHostKey: first, OfferedHostKeyFingerprint: fingerprint(first)}, want: second},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := one().TrustOnFirstUse().Annotation(v1alpha1.AcceptHostKeyAnnotation, tc.annotation).
				EndpointStatus(v1alpha1.EndpointStatus{Name: "a", HostKey: tc.pinned}).Obj()
			if got := pinFor(builder, "a", tc.facts); got != tc.want {
				t.Errorf("pinFor() = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestAnnotationMistake(t *testing.T) {
	t.Parallel()
	pinned, offered := builders.HostKey("first"), builders.HostKey("second")
	facts := probe.Facts{OfferedHostKey: offered, OfferedHostKeyFingerprint: fingerprint(offered)}
	tests := map[string]struct {
		annotation string
		strict     bool
		want       string // part of it; "" means no mistake
	}{
		"none":                      {},
		"right":                     {annotation: "a=" + fingerprint(offered)},
		"left over":                 {annotation: "a=" + fingerprint(pinned)},
		"another key":               {annotation: "a=" + fingerprint(builders.HostKey("third")), want: "is not the key seen"},
		"no such endpoint":          {annotation: "mac=" + fingerprint(offered), want: `there is no endpoint "mac"`},
		"no endpoint":               {annotation: fingerprint(offered), want: "is not of the form ENDPOINT=SHA256:…"},
		"for another endpoint":      {annotation: "b=" + fingerprint(offered)},
		"no fingerprint":            {annotation: "a=" + offered, want: `"ssh-ed25519" is no fingerprint`},
		"cut off":                   {annotation: "a=" + fingerprint(offered)[:40], want: "is no fingerprint"},
		"keys are given":            {annotation: "a=" + fingerprint(offered), strict: true, want: "the keys and authorities of the spec"},
		"endless":                   {annotation: strings.Repeat("x", 5000), want: "…\" is not of the form"},
		"another entry is at fault": {annotation: "zzz=1, a=" + fingerprint(offered)},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wrapper := one().Endpoint("b", "b.example.com").Annotation(v1alpha1.AcceptHostKeyAnnotation, tc.annotation).
				EndpointStatus(v1alpha1.EndpointStatus{Name: "a", HostKey: pinned})
			if !tc.strict {
				wrapper = wrapper.TrustOnFirstUse()
			}
			builder := wrapper.Obj()
			got := annotationMistake(builder, &builder.Spec.Endpoints[0], facts)
			if (got != "") != (tc.want != "") || !strings.Contains(got, tc.want) {
				t.Errorf("annotationMistake() = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestUsesPin(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		builder *builders.NixBuilderWrapper
		want    bool
	}{
		"strict":             {builder: one()},
		"trust on first use": {builder: one().TrustOnFirstUse(), want: true},
		"host keys given":    {builder: one().TrustOnFirstUse().Change(func(b *v1alpha1.NixBuilder) { b.Spec.Endpoints[0].HostKeys = []string{builders.HostKey("a")} })},
		"authority given":    {builder: one().TrustOnFirstUse().Change(func(b *v1alpha1.NixBuilder) { b.Spec.HostCertificateAuthorities = []string{builders.HostKey("ca")} })},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := tc.builder.Obj()
			if got := usesPin(&builder.Spec, &builder.Spec.Endpoints[0]); got != tc.want {
				t.Errorf("usesPin() = %t, want %t", got, tc.want)
			}
		})
	}
}
