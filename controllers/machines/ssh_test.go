// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

// machine is a builder x with one healthy endpoint a.
func machine(endpoint v1alpha1.Endpoint, authorities ...string) *wrapper {
	endpoint.Name = "a"
	return linux("x").EndpointWith(endpoint).EndpointStatus(healthy("a")).
		Change(func(b *v1alpha1.NixBuilder) { b.Spec.HostCertificateAuthorities = authorities })
}

func TestColumn8AndAlias(t *testing.T) {
	t.Parallel()
	key, key2, ca := builders.HostKey("k"), builders.HostKey("k2"), builders.HostKey("ca")
	const alias = "ssh-ng://nix@a.x.nixbuilder"
	column := base64.StdEncoding.EncodeToString([]byte(key))
	pinned := healthy("a")
	pinned.HostKey = key
	tests := map[string]struct {
		builder             *wrapper
		wantURI, wantColumn string
		wantKnown           []string
	}{
		"one key on port 22": {
			machine(v1alpha1.Endpoint{Host: "h.example", HostKeys: []string{key + " comment"}}),
			"ssh-ng://nix@h.example", column, nil,
		},
		"IPv4 address": {
			machine(v1alpha1.Endpoint{Host: "192.0.2.7", HostKeys: []string{key}}),
			"ssh-ng://nix@192.0.2.7", column, nil,
		},
		"a pinned key": {
			linux("x").Endpoint("a", "h.example").TrustOnFirstUse().EndpointStatus(pinned),
			"ssh-ng://nix@h.example", column, nil,
		},
		"several keys": {
			machine(v1alpha1.Endpoint{Host: "h.example", HostKeys: []string{key, key2}}),
			alias, "-", []string{"a.x.nixbuilder " + key, "a.x.nixbuilder " + key2},
		},
		"another port": {
			machine(v1alpha1.Endpoint{Host: "h.example", Port: 2222, HostKeys: []string{key}}),
			alias, "-", []string{"a.x.nixbuilder " + key},
		},
		"an authority": {
			machine(v1alpha1.Endpoint{Host: "h.example", HostKeys: []string{}}, ca),
			alias, "-", []string{"@cert-authority h.example " + ca},
		},
		"an authority and a key on another port": {
			machine(v1alpha1.Endpoint{Host: "h.example", Port: 2222, HostKeys: []string{key}}, ca),
			alias, "-", []string{"@cert-authority [h.example]:2222 " + ca, "[h.example]:2222 " + key},
		},
		"IPv6 address": {
			machine(v1alpha1.Endpoint{Host: "2001:db8:0::1", HostKeys: []string{key}}),
			alias, "-", []string{"a.x.nixbuilder " + key},
		},
		"IPv6 address, as ssh spells it in known_hosts": {
			machine(v1alpha1.Endpoint{Host: "2001:db8:0::1", HostKeys: []string{}}, ca),
			alias, "-", []string{"@cert-authority 2001:db8::1 " + ca},
		},
		"a host too long to name a lock file": {
			machine(v1alpha1.Endpoint{Host: strings.Repeat("h.", 120) + "example", HostKeys: []string{key}}),
			alias, "-", []string{"a.x.nixbuilder " + key},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := render(t, tc.builder)
			columns := strings.Fields(content.Data[KeyMachines])
			if columns[0] != tc.wantURI || columns[7] != tc.wantColumn {
				t.Errorf("URI %s and column 8 %s, want %s and %s", columns[0], columns[7], tc.wantURI, tc.wantColumn)
			}
			known := slices.Collect(strings.Lines(content.Data[KeyKnownHosts]))[1:]
			var want []string
			for _, line := range tc.wantKnown {
				want = append(want, line+"\n")
			}
			slices.Sort(want)
			if diff := cmp.Diff(want, known, cmpEmpty); diff != "" {
				t.Errorf("known_hosts (-want +got):\n%s", diff)
			}
		})
	}
}

// cmpEmpty takes nil and empty lists for equal.
var cmpEmpty = cmp.FilterValues(
	func(a, b []string) bool { return len(a) == 0 && len(b) == 0 },
	cmp.Comparer(func(_, _ []string) bool { return true }))

func TestAliasesAreShortAndTheirOwn(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for _, builder := range []string{"b", "b.c", strings.Repeat("b", 253), strings.Repeat("b", 252) + "c"} {
		for _, name := range []string{"a", "a-b", strings.Repeat("a", 63)} {
			alias := (&endpoint{builder: builder, name: name}).alias()
			if seen[alias] || len(alias) > maxAlias {
				t.Errorf("alias %q of %s/%s is taken or has %d bytes", alias, builder, name, len(alias))
			}
			seen[alias] = true
		}
	}
}

func TestUnlistedEndpointSaysWhy(t *testing.T) {
	t.Parallel()
	content := render(t, one("ok", healthy("")), one("long", healthy("")).
		Change(func(b *v1alpha1.NixBuilder) { b.Spec.RemoteProgram = "/" + strings.Repeat("p", 300) }))
	if diff := cmp.Diff([]string{"ok.example x86_64-linux"}, lines(t, content)); diff != "" {
		t.Errorf("one endpoint without a line must not cost others theirs (-want +got):\n%s", diff)
	}
	if len(content.Unlisted) != 1 || !strings.Contains(content.Unlisted[0].Error(), "endpoint a of NixBuilder long") {
		t.Errorf("Unlisted = %v, want endpoint a of long", content.Unlisted)
	}
	if !strings.Contains(content.Data[KeyBuilders], `"builder":"long"`) {
		t.Error("builders.json lacks the endpoint")
	}
}

func TestSSHConfig(t *testing.T) {
	t.Parallel()
	content := render(t,
		one("plain", healthy("")),
		machine(v1alpha1.Endpoint{Host: "h.example", Port: 2222, HostKeys: []string{builders.HostKey("k")}}))
	want := `# For the ssh of Nix: NIX_SSHOPTS="-F /etc/nix-machines/ssh_config"

Host plain.example
  StrictHostKeyChecking yes
  UpdateHostKeys no
  BatchMode yes
  IdentitiesOnly yes
  ConnectTimeout 10
  ServerAliveInterval 15
  ServerAliveCountMax 3

Host a.x.nixbuilder
  HostName h.example
  Port 2222
  HostKeyAlias a.x.nixbuilder
  UserKnownHostsFile /etc/nix-machines/known_hosts
  GlobalKnownHostsFile /dev/null
  CheckHostIP no
  StrictHostKeyChecking yes
  UpdateHostKeys no
  BatchMode yes
  IdentitiesOnly yes
  ConnectTimeout 10
  ServerAliveInterval 15
  ServerAliveCountMax 3
`
	if diff := cmp.Diff(want, content.Data[KeySSHConfig]); diff != "" {
		t.Errorf("ssh_config (-want +got):\n%s", diff)
	}
}

func TestNixConf(t *testing.T) {
	t.Parallel()
	const want = "# For the nix.conf of a client: include /etc/nix-machines/nix.conf\nbuilders = @/etc/nix-machines/machines\n"
	if diff := cmp.Diff(want, render(t).Data[KeyNixConf]); diff != "" {
		t.Errorf("nix.conf (-want +got):\n%s", diff)
	}
}
