// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

// behindJump puts a builder behind a jump host.
func behindJump(w *builders.NixBuilderWrapper, change func(*v1alpha1.ProxyJump)) *builders.NixBuilderWrapper {
	return w.Change(func(b *v1alpha1.NixBuilder) {
		b.Spec.ProxyJump = &v1alpha1.ProxyJump{Host: "jump.example", HostKeys: []string{builders.HostKey("j")}}
		change(b.Spec.ProxyJump)
	})
}

func secretRefs(names ...string) []v1alpha1.SecretReference {
	var refs []v1alpha1.SecretReference
	for _, name := range names {
		refs = append(refs, v1alpha1.SecretReference{Name: name})
	}
	return refs
}

func TestCheckJump(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change                  func(*v1alpha1.ProxyJump)
		wantReason, wantMessage string
	}{
		"good":         {change: func(*v1alpha1.ProxyJump) {}},
		"IPv6 address": {change: func(j *v1alpha1.ProxyJump) { j.Host = "2001:db8::7" }},
		"impossible address": {
			change:     func(j *v1alpha1.ProxyJump) { j.Host = "1::2::3" },
			wantReason: "InvalidHost", wantMessage: `proxyJump: host "1::2::3"`,
		},
		"host key that is none": {
			change:     func(j *v1alpha1.ProxyJump) { j.HostKeys = []string{builders.HostKey("a"), "ssh-rsa AAAA"} },
			wantReason: "InvalidKey", wantMessage: "proxyJump: hostKeys[1]",
		},
		"authority that is none": {
			change:     func(j *v1alpha1.ProxyJump) { j.HostCertificateAuthorities = []string{"ssh-rsa AAAA"} },
			wantReason: "InvalidKey", wantMessage: "proxyJump: hostCertificateAuthorities[0]",
		},
	}
	for name, tc := range tests {
		reason, message := checkSpec(behindJump(one(), tc.change).Obj())
		if reason != tc.wantReason || !strings.Contains(message, tc.wantMessage) {
			t.Errorf("%s: %q, %q, want %q, %q", name, reason, message, tc.wantReason, tc.wantMessage)
		}
	}
}

// One private address in two networks is two machines.
func TestDuplicateBehindJumpHosts(t *testing.T) {
	t.Parallel()
	place := func(name string, key string) *builders.NixBuilderWrapper {
		return builders.MakeNixBuilder(name).Created(testTime).
			EndpointWith(v1alpha1.Endpoint{Name: "a", Host: "10.0.0.5", HostKeys: []string{builders.HostKey(key)}})
	}
	here := func(*v1alpha1.ProxyJump) {}
	there := func(j *v1alpha1.ProxyJump) { j.Host = "other.example" }
	tests := map[string]struct {
		mine, other *builders.NixBuilderWrapper
		want        string
	}{
		"behind one jump host":   {behindJump(place("m", "m"), here), behindJump(place("a", "a"), here), "host and port 10.0.0.5:22 behind jump.example:22"},
		"behind two":             {behindJump(place("m", "m"), here), behindJump(place("a", "a"), there), ""},
		"behind one and none":    {behindJump(place("m", "m"), here), place("a", "a"), ""},
		"behind two, by its key": {behindJump(place("m", "a"), here), behindJump(place("a", "a"), there), "the same host key"},
	}
	for name, tc := range tests {
		tc.mine.Created(testTime.Add(time.Hour))
		got := duplicateOf(tc.mine.Obj(), []v1alpha1.NixBuilder{*tc.other.Obj()})
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestJumpCredentials(t *testing.T) {
	t.Parallel()
	all := map[string]probe.Credential{"m": {Name: "m"}, "j1": {Name: "j1"}, "j2": {Name: "j2"}}
	own := func(j *v1alpha1.ProxyJump) {
		j.User, j.Port = "hop", 2222
		j.Credentials = &v1alpha1.Credentials{SecretRefs: secretRefs("j2", "j1", "m")}
	}
	tests := map[string]struct {
		change      func(*v1alpha1.ProxyJump)
		unusable    []string
		wantNames   []string
		wantMachine []probe.Credential
		wantJump    *probe.Jump
	}{
		"its own": {
			change: own, wantNames: []string{"m", "j2", "j1"}, wantMachine: []probe.Credential{all["m"]},
			wantJump: &probe.Jump{Host: "jump.example", Port: 2222, User: "hop", Credentials: []probe.Credential{all["j2"], all["j1"], all["m"]}},
		},
		"those of the machines": {
			change: func(*v1alpha1.ProxyJump) {}, wantNames: []string{"m"}, wantMachine: []probe.Credential{all["m"]},
			wantJump: &probe.Jump{Host: "jump.example", User: "nix", Credentials: []probe.Credential{all["m"]}},
		},
		"one of its own": {
			change: own, unusable: []string{"j2", "m"}, wantNames: []string{"m", "j2", "j1"},
			wantJump: &probe.Jump{Host: "jump.example", Port: 2222, User: "hop", Credentials: []probe.Credential{all["j1"]}},
		},
		"none of its own": {
			change: func(j *v1alpha1.ProxyJump) {
				j.Credentials = &v1alpha1.Credentials{SecretRefs: secretRefs("j1")}
			},
			unusable: []string{"j1"}, wantNames: []string{"m", "j1"},
			wantJump: &probe.Jump{Host: "jump.example", User: "nix"},
		},
	}
	for name, tc := range tests {
		builder := behindJump(one(), tc.change).Change(func(b *v1alpha1.NixBuilder) {
			b.Spec.Credentials.SecretRefs = secretRefs("m")
		}).Obj()
		if diff := cmp.Diff(tc.wantNames, secretNames(&builder.Spec)); diff != "" {
			t.Errorf("%s: Secrets to read (-want +got):\n%s", name, diff)
		}
		usable := map[string]probe.Credential{}
		for secret, credential := range all {
			usable[secret] = credential
		}
		for _, secret := range tc.unusable {
			delete(usable, secret)
		}
		s := &scope{builder: builder}
		s.takeCredentials(usable)
		if diff := cmp.Diff(tc.wantMachine, s.credentials); diff != "" {
			t.Errorf("%s: for the machines (-want +got):\n%s", name, diff)
		}
		tc.wantJump.HostKeys = []string{builders.HostKey("j")}
		if diff := cmp.Diff(tc.wantJump, s.target(&builder.Spec.Endpoints[0]).Jump); diff != "" {
			t.Errorf("%s: the jump host (-want +got):\n%s", name, diff)
		}
	}
	direct := &scope{builder: one().Obj()}
	direct.takeCredentials(all)
	if direct.target(&direct.builder.Spec.Endpoints[0]).Jump != nil {
		t.Error("a builder without a jump host has one")
	}
}
