// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package setup

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

func TestAuthorizedKey(t *testing.T) {
	t.Parallel()
	key := builders.HostKey("k")
	tests := map[string]struct {
		options Options
		want    string
	}{
		"plain":              {Options{For: Linux, PublicKey: key + "\n"}, "restrict " + key},
		"with a comment":     {Options{For: Linux, PublicKey: key + " me@here"}, "restrict " + key + " me@here"},
		"with a bad comment": {Options{For: Linux, PublicKey: key + " it's me"}, "restrict " + key},
		"with a quote in it": {Options{For: Linux, PublicKey: key + " me'$(id)"}, "restrict " + key},
		"from addresses":     {Options{For: Linux, PublicKey: key, From: []string{"10.0.0.0/8", "2001:db8::/32"}}, `restrict,from="10.0.0.0/8,2001:db8::/32" ` + key},
		"for the daemon":     {Options{For: Linux, PublicKey: key, DaemonOnly: true, Systems: []string{"x86_64-linux"}}, `restrict,command="nix-daemon --stdio" ` + key},
		"for that of a Mac":  {Options{For: MacOS, PublicKey: key, DaemonOnly: true, Systems: []string{"aarch64-darwin"}}, `restrict,command="` + macDaemon + ` --stdio" ` + key},
		"none":               {Options{For: NixOS}, "restrict " + noKey},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := New(tc.options)
			if err != nil {
				t.Fatal(err)
			}
			if text.AuthorizedKey != tc.want {
				t.Errorf("key %q, want %q", text.AuthorizedKey, tc.want)
			}
			if !strings.Contains(text.Machine, tc.want) {
				t.Errorf("the machine's part lacks it:\n%s", text.Machine)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		options Options
		want    string
	}{
		"no kind":                       {Options{}, "--for"},
		"another kind":                  {Options{For: "windows"}, `--for "windows"`},
		"a user of another language":    {Options{For: Linux, User: "a;b"}, `--user "a;b"`},
		"a host with a quote":           {Options{For: Linux, Host: `a"b`}, "--host"},
		"a name for a file":             {Options{For: Linux, Name: "../a"}, "--name"},
		"a Secret like a flag":          {Options{For: Linux, Secret: "-x"}, "--secret"},
		"a namespace of several":        {Options{For: Linux, Namespace: "a b"}, "--namespace"},
		"a program with an argument":    {Options{For: Linux, RemoteProgram: "/a --b"}, "--remote-program"},
		"a private key with a blank":    {Options{For: Linux, PrivateKey: "a b"}, "path of the private key"},
		"an address with a quote":       {Options{For: Linux, From: []string{`"`}}, "--from"},
		"a system with a quote":         {Options{For: Linux, Systems: []string{`"`}}, "--system"},
		"the daemon without a system":   {Options{For: Linux, DaemonOnly: true}, "say it with --system"},
		"a public key that is none":     {Options{For: Linux, PublicKey: "x"}, "--public-key"},
		"a private key in its place":    {Options{For: Linux, PublicKey: "-----BEGIN OPENSSH PRIVATE KEY-----\nxyz"}, "that is the private key"},
		"a host key that is none":       {Options{For: Linux, HostKey: "x"}, "--host-key"},
		"a user name like an option":    {Options{For: Linux, User: "-x"}, "--user"},
		"a host with a change of lines": {Options{For: Linux, Host: "a\nb"}, "--host"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := New(tc.options)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %s", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "xyz") {
				t.Errorf("the error has the key in it: %v", err)
			}
		})
	}
}

// Names that YAML has other ideas about, or that an endpoint cannot have, are names.
func TestNamesLikeOtherThings(t *testing.T) {
	t.Parallel()
	text, err := New(Options{For: Linux, Name: "1.5", User: "1000", Secret: "on", Systems: []string{"1-1"}})
	if err != nil {
		t.Fatal(err)
	}
	_, manifest, _ := strings.Cut(text.Cluster, "<<'END'\n")
	manifest, _, _ = strings.Cut(manifest, "END\n")
	var object v1alpha1.NixBuilder
	if err := yaml.UnmarshalStrict([]byte(manifest), &object); err != nil {
		t.Fatalf("%v:\n%s", err, manifest)
	}
	spec := object.Spec
	got := []string{object.Name, spec.User, spec.Credentials.SecretRefs[0].Name, spec.Endpoints[0].Name, spec.Systems[0]}
	if want := []string{"1.5", "1000", "on", "1-5-1", "1-1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What is printed is what it says it is: scripts for sh, and a NixBuilder.
func TestSyntax(t *testing.T) {
	t.Parallel()
	for _, kind := range Kinds() {
		for _, user := range []string{"", "root"} {
			for _, daemonOnly := range []bool{false, true} {
				options := Options{
					For: kind, User: user, PublicKey: builders.HostKey("k"), HostKey: builders.HostKey("h"), Namespace: "ci", Port: 2222,
					DaemonOnly: daemonOnly, Systems: []string{"x86_64-linux", "aarch64-linux"}, Host: "2001:db8::7",
				}
				text, err := New(options)
				if err != nil {
					t.Fatal(err)
				}
				for _, script := range []string{text.Machine, text.Cluster} {
					if script == text.Machine && kind == NixOS {
						continue // a test with real Nix reads that
					}
					check := exec.Command("sh", "-n")
					check.Stdin = strings.NewReader(script)
					if output, err := check.CombinedOutput(); err != nil {
						t.Errorf("%s, %q: %v: %s\n%s", kind, user, err, output, script)
					}
				}
				_, manifest, _ := strings.Cut(text.Cluster, "<<'END'\n")
				manifest, _, _ = strings.Cut(manifest, "END\n")
				var object v1alpha1.NixBuilder
				if err := yaml.UnmarshalStrict([]byte(manifest), &object); err != nil {
					t.Fatalf("%v:\n%s", err, manifest)
				}
				endpoint := object.Spec.Endpoints[0]
				if endpoint.Port != 2222 || endpoint.Host != "2001:db8::7" || endpoint.HostKeys[0] != builders.HostKey("h") || len(object.Spec.Systems) != 2 {
					t.Errorf("%+v", object.Spec)
				}
				if wantRoot := user == "root"; strings.Contains(text.Machine, "trusted-users") == wantRoot {
					t.Errorf("for %q the machine's part says:\n%s", user, text.Machine)
				}
			}
		}
	}
}

// The last thing that a script prints is a host key that is there; without any it fails.
func TestHostKeyOfTheMachine(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		files      map[string]string
		want       string
		wantFailed bool
	}{
		"the usual one": {map[string]string{"ed25519": "ssh-ed25519 AAAA root@m\n", "rsa": "ssh-rsa BBBB\n"}, "hostKeys: ssh-ed25519 AAAA\n", false},
		"another one":   {map[string]string{"rsa": "ssh-rsa BBBB root@m\n"}, "hostKeys: ssh-rsa BBBB\n", false},
		"an empty one":  {map[string]string{"ed25519": "", "ecdsa": "ecdsa-sha2-nistp256 CCCC\n"}, "hostKeys: ecdsa-sha2-nistp256 CCCC\n", false},
		"none":          {nil, "ssh-keygen -A", true},
	}
	for name, tc := range tests {
		for _, kind := range []string{Linux, MacOS} {
			t.Run(name+" on "+kind, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				for key, text := range tc.files {
					if err := os.WriteFile(filepath.Join(dir, "ssh_host_"+key+"_key.pub"), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				text, err := New(Options{For: kind})
				if err != nil {
					t.Fatal(err)
				}
				_, end, _ := strings.Cut(text.Machine, "\nhost_key=\n")
				script := "set -eu\nhost_key=\n" + strings.ReplaceAll(end, "/etc/ssh/", dir+"/")
				output, err := exec.CommandContext(t.Context(), "sh", "-c", script).CombinedOutput()
				if (err != nil) != tc.wantFailed || !strings.Contains(string(output), tc.want) {
					t.Errorf("%v: %s", err, output)
				}
			})
		}
	}
}

// What a flag takes is said in words.
func TestRefusalsAreProse(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{
		{For: "windows"}, {For: Linux, User: "a b"}, {For: Linux, Name: "A"}, {For: Linux, Host: "X"}, {For: Linux, From: []string{"a b"}},
		{For: Linux, RemoteProgram: "nix"}, {For: Linux, Systems: []string{"a b"}}, {For: Linux, PrivateKey: "a b"},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "has to be") || strings.ContainsAny(err.Error(), "^$[]*") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
