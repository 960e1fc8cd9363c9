// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

func TestCheckSpec(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change      func(*v1alpha1.NixBuilderSpec)
		wantReason  string
		wantMessage string
	}{
		"good":         {change: func(*v1alpha1.NixBuilderSpec) {}},
		"IPv6 address": {change: func(s *v1alpha1.NixBuilderSpec) { s.Endpoints[0].Host = "2001:db8::7" }},
		"impossible address": {
			change:     func(s *v1alpha1.NixBuilderSpec) { s.Endpoints[0].Host = "1::2::3" },
			wantReason: "InvalidHost", wantMessage: `endpoint a: host "1::2::3"`,
		},
		"host key that is none": {
			change: func(s *v1alpha1.NixBuilderSpec) {
				s.Endpoints[0].HostKeys = []string{builders.HostKey("a"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA=="}
			},
			wantReason: "InvalidKey", wantMessage: "endpoint a: hostKeys[1]",
		},
		"authority that is none": {
			change:     func(s *v1alpha1.NixBuilderSpec) { s.HostCertificateAuthorities = []string{"ssh-rsa AAAA"} },
			wantReason: "InvalidKey", wantMessage: "hostCertificateAuthorities[0]",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := one().Obj()
			tc.change(&builder.Spec)
			reason, message := checkSpec(builder)
			if reason != tc.wantReason || !strings.Contains(message, tc.wantMessage) {
				t.Errorf("checkSpec() = %q, %q, want %q, %q", reason, message, tc.wantReason, tc.wantMessage)
			}
		})
	}
}

func TestDuplicateOf(t *testing.T) {
	t.Parallel()
	older, younger := testTime, testTime.Add(time.Hour)
	mine := func() *builders.NixBuilderWrapper {
		return builders.MakeNixBuilder("m").Created(younger).Endpoint("a", "a.example.com")
	}
	sameKey := v1alpha1.Endpoint{Name: "x", Host: "x.example.com", HostKeys: []string{builders.HostKey("a.example.com") + " comment"}}
	samePlace := v1alpha1.Endpoint{Name: "x", Host: "a.example.com", HostKeys: []string{builders.HostKey("other")}}
	keyMessage := "endpoint a has the same host key " + fingerprint(builders.HostKey("a.example.com")) +
		" as endpoint x of NixBuilder o, which is older; remove it from one of the two, or, if they are different machines, give each a host key of its own"

	shown := func(endpoint, address string) v1alpha1.EndpointStatus {
		return v1alpha1.EndpointStatus{Name: endpoint, Address: address, HostKey: builders.HostKey("a.example.com"), Credential: "key"}
	}
	refutedStatus := func(address string) v1alpha1.EndpointStatus {
		return v1alpha1.EndpointStatus{
			Name: "x", Address: address, State: v1alpha1.EndpointUnhealthy, FailedCondition: "HostKeyVerified", Reason: "HostKeyChanged",
		}
	}

	tests := map[string]struct {
		mine  *builders.NixBuilderWrapper
		other *builders.NixBuilderWrapper
		want  string // prefix; "" means no duplicate
	}{
		"nothing in common":  {other: builders.MakeNixBuilder("o").Created(older).Endpoint("a", "o.example.com")},
		"same host key":      {other: builders.MakeNixBuilder("o").Created(older).EndpointWith(sameKey), want: keyMessage},
		"same host and port": {other: builders.MakeNixBuilder("o").Created(older).EndpointWith(samePlace), want: "endpoint a has the same host and port a.example.com:22 as endpoint x of NixBuilder o, which is older; remove it from one of the two"},
		"same host, another port": {other: builders.MakeNixBuilder("o").Created(older).EndpointWith(
			v1alpha1.Endpoint{Name: "x", Host: "a.example.com", Port: 2222, HostKeys: []string{builders.HostKey("other")}})},
		"the other is younger":     {other: builders.MakeNixBuilder("o").Created(younger.Add(time.Second)).EndpointWith(sameKey)},
		"equally old, name before": {other: builders.MakeNixBuilder("b").Created(younger).EndpointWith(sameKey), want: "endpoint a has"},
		"equally old, name after":  {other: builders.MakeNixBuilder("z").Created(younger).EndpointWith(sameKey)},
		"the other is being deleted": {other: builders.MakeNixBuilder("o").Created(older).EndpointWith(sameKey).Change(func(b *v1alpha1.NixBuilder) {
			b.DeletionTimestamp = &metav1.Time{Time: younger}
		})},
		"the other has it pinned": {
			other: builders.MakeNixBuilder("o").Created(older).TrustOnFirstUse().Endpoint("x", "x.example.com").
				EndpointStatus(v1alpha1.EndpointStatus{Name: "x", Address: "x.example.com:22", HostKey: builders.HostKey("a.example.com"), Credential: "key"}),
			want: keyMessage,
		},
		"the other had it pinned at another place": {
			other: builders.MakeNixBuilder("o").Created(older).TrustOnFirstUse().Endpoint("x", "x.example.com").
				EndpointStatus(v1alpha1.EndpointStatus{Name: "x", Address: "old.example.com:22", HostKey: builders.HostKey("a.example.com"), Credential: "key"}),
		},
		"the other's machine has shown another key": {
			other: builders.MakeNixBuilder("o").Created(older).EndpointWith(sameKey).EndpointStatus(refutedStatus("x.example.com:22")),
		},
		"the other's machine has, at another place": {
			other: builders.MakeNixBuilder("o").Created(older).EndpointWith(sameKey).EndpointStatus(refutedStatus("old.example.com:22")), want: keyMessage,
		},
		"mine has brought the pin along from another place": {
			mine: builders.MakeNixBuilder("m").Created(younger).TrustOnFirstUse().Endpoint("a", "new.example.com").
				EndpointStatus(v1alpha1.EndpointStatus{Name: "a", Address: "new.example.com:22", HostKey: builders.HostKey("a.example.com")}),
			other: builders.MakeNixBuilder("o").Created(older).EndpointWith(sameKey),
		},
		"mine has shown the key that the other only claims": {
			mine:  mine().EndpointStatus(shown("a", "a.example.com:22")),
			other: builders.MakeNixBuilder("o").Created(older).EndpointWith(sameKey),
		},
		"mine has, at another place": {
			mine:  mine().EndpointStatus(shown("a", "old.example.com:22")),
			other: builders.MakeNixBuilder("o").Created(older).EndpointWith(sameKey), want: keyMessage,
		},
		"both have shown the key": {
			mine:  mine().EndpointStatus(shown("a", "a.example.com:22")),
			other: builders.MakeNixBuilder("o").Created(older).EndpointWith(sameKey).EndpointStatus(shown("x", "x.example.com:22")), want: keyMessage,
		},
		"one address in two spellings": {
			mine:  builders.MakeNixBuilder("m").Created(younger).Endpoint("a", "2001:db8::7"),
			other: builders.MakeNixBuilder("o").Created(older).EndpointWith(v1alpha1.Endpoint{Name: "x", Host: "2001:db8:0:0::7", HostKeys: []string{builders.HostKey("other")}}),
			want:  "endpoint a has the same host and port [2001:db8::7]:22 as",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.mine == nil {
				tc.mine = mine()
			}
			builder, other := tc.mine.Obj(), tc.other.Obj()
			got := duplicateOf(builder, []v1alpha1.NixBuilder{*builder, *other})
			if (got != "") != (tc.want != "") || !strings.HasPrefix(got, tc.want) {
				t.Errorf("duplicateOf() = %q, want %q…", got, tc.want)
			}
			if tc.want != "" && !related(builder, other) {
				t.Error("they are duplicates, but not related")
			}
		})
	}
}

func TestDuplicateNamesTheOldest(t *testing.T) {
	t.Parallel()
	var namespace []v1alpha1.NixBuilder
	for i, name := range []string{"youngest", "middle", "oldest"} {
		namespace = append(namespace, *builders.MakeNixBuilder(name).Created(testTime.Add(-time.Duration(i)*time.Hour)).Endpoint("a", "a.example.com").Obj())
	}
	if got := duplicateOf(&namespace[0], namespace); !strings.Contains(got, "NixBuilder oldest") {
		t.Errorf("duplicateOf() = %q, want the oldest to be named", got)
	}
	if got := duplicateOf(&namespace[2], namespace); got != "" {
		t.Errorf("duplicateOf() = %q for the oldest", got)
	}
}
