// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

func keyLine(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// The real ssh, with our files and nothing else, must get to the machine that
// is meant and to no other.
func TestOpenSSHVerifiesHostsByOurFiles(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("no ssh: install openssh-client")
	}
	host, other, authority := sshtest.NewKey(t), sshtest.NewKey(t), sshtest.NewKey(t)
	certified := func(principal string) ssh.Signer {
		return sshtest.Certified(t, sshtest.NewCertificate(t, authority, sshtest.Certificate{
			Key: host.PublicKey(), Type: ssh.HostCert, Principals: []string{principal},
		}), host)
	}
	private, _ := sshtest.NewKeyFile(t)
	identity := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(identity, private, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		shown       ssh.Signer
		hostKeys    []string
		authorities []string
		wantFailure string
	}{
		"the key":            {shown: host, hostKeys: []string{keyLine(host.PublicKey())}},
		"one of two keys":    {shown: host, hostKeys: []string{keyLine(other.PublicKey()), keyLine(host.PublicKey())}},
		"another key":        {shown: other, hostKeys: []string{keyLine(host.PublicKey())}, wantFailure: "Host key verification failed"},
		"a host certificate": {shown: certified("127.0.0.1"), authorities: []string{keyLine(authority.PublicKey())}},
		"a host certificate for another host": {
			shown: certified("h.example"), authorities: []string{keyLine(authority.PublicKey())},
			wantFailure: "name is not a listed principal",
		},
		"a key where an authority is given too": {
			shown: host, hostKeys: []string{keyLine(host.PublicKey())}, authorities: []string{keyLine(authority.PublicKey())},
		},
		"a key without the certificate": {
			shown: host, authorities: []string{keyLine(authority.PublicKey())}, wantFailure: "Host key verification failed",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := sshtest.New(t, sshtest.Behavior{
				HostKeys: []ssh.Signer{tc.shown},
				Exec:     func(string, sshtest.Stdio) int { return 42 },
			})
			_, text, _ := net.SplitHostPort(server.Addr())
			port, _ := strconv.Atoi(text)
			endpoint := v1alpha1.Endpoint{Host: "127.0.0.1", Port: int32(port), HostKeys: append([]string{}, tc.hostKeys...)}
			content := render(t, machine(endpoint, tc.authorities...))
			dir := t.TempDir()
			for _, key := range []string{KeySSHConfig, KeyKnownHosts} {
				text := strings.ReplaceAll(content.Data[key], MountPath, dir)
				if err := os.WriteFile(filepath.Join(dir, key), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			command := exec.CommandContext(t.Context(), program, "-F", filepath.Join(dir, KeySSHConfig), "-i", identity,
				"nix@a.x.nixbuilder", "nix-daemon", "--stdio")
			output, _ := command.CombinedOutput()
			status := command.ProcessState.ExitCode()
			if tc.wantFailure == "" && status != 42 {
				t.Errorf("ssh ended with status %d, want that of the command, 42:\n%s", status, output)
			}
			if tc.wantFailure != "" && (status != 255 || !strings.Contains(string(output), tc.wantFailure)) {
				t.Errorf("ssh ended with status %d and says %q, want 255 and %q", status, output, tc.wantFailure)
			}
		})
	}
}

// OpenSSH must read our file as it is meant.
func TestOpenSSHReadsTheConfig(t *testing.T) {
	t.Parallel()
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("no ssh: install openssh-client")
	}
	content := render(t,
		machine(v1alpha1.Endpoint{Host: "2001:db8::1", Port: 2222, HostKeys: []string{}}, builders.HostKey("ca")),
		linux("y").EndpointWith(v1alpha1.Endpoint{Name: "b", Host: "h.example", Port: 2223}).EndpointStatus(healthy("b")))
	path := filepath.Join(t.TempDir(), "ssh_config")
	if err := os.WriteFile(path, []byte(content.Data[KeySSHConfig]), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		host string
		want []string
	}{
		"with an authority": {"a.x.nixbuilder", []string{"hostname 2001:db8::1", "port 2222"}},
		"with a key":        {"b.y.nixbuilder", []string{"hostname h.example", "port 2223", "hostkeyalias b.y.nixbuilder"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			output, err := exec.CommandContext(t.Context(), ssh, "-F", path, "-G", tc.host).CombinedOutput()
			if err != nil {
				t.Fatalf("ssh -G: %v\n%s", err, output)
			}
			settings := strings.Split(string(output), "\n")
			for _, want := range append(tc.want, "userknownhostsfile /etc/nix-machines/known_hosts",
				"globalknownhostsfile /dev/null", "stricthostkeychecking true", "batchmode yes", "connecttimeout 10") {
				if !slices.Contains(settings, want) {
					t.Errorf("ssh does not understand %q; it has:\n%s", want, output)
				}
			}
			alias := slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, "hostkeyalias") })
			if wantAlias := strings.Contains(strings.Join(tc.want, " "), "hostkeyalias"); alias != wantAlias {
				t.Errorf("there is a HostKeyAlias: %v, want %v", alias, wantAlias)
			}
		})
	}
}
