// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// Without a cluster nothing is said of one, and nobody is told to take the passphrase off
// a key.
func TestWordsOfTheCommandLine(t *testing.T) {
	t.Parallel()
	refusing := sshtest.New(t, sshtest.Behavior{AuthorizedKeys: []ssh.PublicKey{}})
	known := knownLine(t, refusing)
	otherKey := sshconn.AuthorizedKey(sshtest.NewKey(t).PublicKey())
	host, _, _ := strings.Cut(known, " ")
	plain, public := sshtest.NewKeyFile(t)
	certificate := sshconn.AuthorizedKey(public)
	tests := map[string]struct {
		key, certificate string
		known            string
		line             string
		want             []string
	}{
		"a passphrase":        {key: string(sshtest.NewLockedKeyFile(t)), known: known, want: []string{"PrivateKeyHasPassphrase", "FILE: the private key is protected by a passphrase", "; name another key with --identity"}},
		"the public key":      {key: certificate, known: known, want: []string{"FILE: this file holds the public key; name the file without .pub with --identity"}},
		"no key":              {key: "hello", known: known, want: []string{"FILE: this file is not a private key", "; name another key with --identity"}},
		"no certificate":      {key: string(plain), certificate: "hello", known: known, want: []string{"FILE-cert.pub is not a user certificate; move that file away"}},
		"an unknown host key": {key: string(plain), want: []string{"HostKeyUnknown", "give it with --host-key 'ssh-", "', or add it to known_hosts"}},
		"another host key":    {key: string(plain), known: host + " " + otherKey + "\n", want: []string{"HostKeyChanged", "in the place of the old one (known_hosts, --host-key"}},
		"a refused login":     {key: string(plain), known: known, want: []string{"LoginRefused", "with the key FILE", "or correct the user in the URI"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			file := filepath.Join(dir, ".ssh", "id_ed25519")
			write(t, file, tc.key)
			write(t, filepath.Join(dir, ".ssh", "known_hosts"), tc.known)
			if tc.certificate != "" {
				write(t, file+"-cert.pub", tc.certificate)
			}
			report, err := Probe(t.Context(), Lines{Home: dir, URIs: []string{"ssh-ng://nix@" + refusing.Addr()}}, &notes{})
			if err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			for _, step := range report.Builders[0].Machines[0].Steps {
				said.WriteString(step.Reason + " " + step.Message + "\n")
			}
			for _, want := range tc.want {
				if want = strings.ReplaceAll(want, "FILE", file); !strings.Contains(said.String(), want) {
					t.Errorf("no %q in:\n%s", want, said.String())
				}
			}
			for _, never := range []string{"Secret", "spec.", "hostKeys", "ssh-privatekey", "-N ''", "operator", "cluster"} {
				if strings.Contains(said.String(), never) {
					t.Errorf("%q in:\n%s", never, said.String())
				}
			}
		})
	}
}

// What stands in the sources of the prober about spec, Secrets and clusters has words for
// the command line, too.
func TestEveryWordHasAnother(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../../../internal/probe/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, "reasons.go") { // those are for the documentation
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			// What the API server or the command line refuses before does not come up.
			if strings.HasPrefix(strings.TrimSpace(line), "//") || strings.Contains(line, "parseKeys(") || strings.Contains(line, "spec.discovery is") {
				continue
			}
			said := strings.NewReplacer(phrases()...).Replace(line)
			for _, never := range []string{"spec.", "hostKeys", "the cluster"} {
				if strings.Contains(said, never) && !strings.Contains(line, "add to hostKeys: %s") {
					t.Errorf("%s still says %q: %s", filepath.Base(file), never, said)
				}
			}
		}
	}
}
