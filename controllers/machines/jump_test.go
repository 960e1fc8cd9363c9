// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// behind puts the machines of a builder behind a jump host.
func behind(w *wrapper, change func(*v1alpha1.ProxyJump)) *wrapper {
	return w.Change(func(b *v1alpha1.NixBuilder) {
		b.Spec.ProxyJump = &v1alpha1.ProxyJump{Host: "jump.example", HostKeys: []string{builders.HostKey("j") + " comment"}}
		change(b.Spec.ProxyJump)
	})
}

func TestJumpHost(t *testing.T) {
	t.Parallel()
	key := builders.HostKey("k")
	content := render(t, behind(machine(v1alpha1.Endpoint{Host: "10.0.0.5", HostKeys: []string{key}}), func(j *v1alpha1.ProxyJump) {
		j.Port, j.User = 2200, "hop"
		j.Credentials = &v1alpha1.Credentials{SecretRefs: []v1alpha1.SecretReference{{Name: "new"}, {Name: "old"}}}
	}))
	if columns := strings.Fields(content.Data[KeyMachines]); columns[0] != "ssh-ng://nix@a.x.nixbuilder" || columns[7] != "-" {
		t.Errorf("the line is %v", columns)
	}
	const options = "  UserKnownHostsFile /etc/nix-machines/known_hosts\n  GlobalKnownHostsFile /dev/null\n  CheckHostIP no\n" + commonOptions
	want := `# For the ssh of Nix: NIX_SSHOPTS="-F /etc/nix-machines/ssh_config"

Host a.x.nixbuilder
  HostName 10.0.0.5
  Port 22
  HostKeyAlias a.x.nixbuilder
  ProxyJump x.nixbuilder-jump
` + options + `
Host x.nixbuilder-jump
  HostName jump.example
  Port 2200
  HostKeyAlias x.nixbuilder-jump
  User hop
  IdentityFile /etc/nix-keys/new/ssh-privatekey
  IdentityFile /etc/nix-keys/old/ssh-privatekey
` + options
	if diff := cmp.Diff(want, content.Data[KeySSHConfig]); diff != "" {
		t.Errorf("ssh_config (-want +got):\n%s", diff)
	}
	wantKnown := "# Host keys of the aliases in ssh_config\na.x.nixbuilder " + key + "\nx.nixbuilder-jump " + builders.HostKey("j") + "\n"
	if diff := cmp.Diff(wantKnown, content.Data[KeyKnownHosts]); diff != "" {
		t.Errorf("known_hosts (-want +got):\n%s", diff)
	}
	document, err := inventory.Decode([]byte(content.Data[KeyBuilders]))
	if err != nil {
		t.Fatal(err)
	}
	wantJump := &inventory.Jump{Host: "jump.example", Port: 2200, User: "hop", HostKeys: []string{builders.HostKey("j")}, Credentials: []string{"new", "old"}}
	if diff := cmp.Diff(wantJump, document.Builders[0].Jump); diff != "" {
		t.Errorf("builders.json (-want +got):\n%s", diff)
	}
}

// What the jump host's part of the spec leaves out is that of the machines.
func TestJumpHostDefaults(t *testing.T) {
	t.Parallel()
	ca := builders.HostKey("ca")
	content := render(t,
		behind(linux("x").Endpoint("a", "10.0.0.5").Endpoint("b", "10.0.0.6").EndpointStatus(healthy("a")).EndpointStatus(healthy("b")),
			func(j *v1alpha1.ProxyJump) { j.HostKeys, j.HostCertificateAuthorities = nil, []string{ca} }),
		behind(linux(strings.Repeat("y", 200)).Endpoint("a", "10.0.0.5").EndpointStatus(healthy("a")), func(*v1alpha1.ProxyJump) {}))
	text := content.Data[KeySSHConfig]
	if n := strings.Count(text, "Host x.nixbuilder-jump\n"); n != 1 {
		t.Errorf("the jump host of two machines is there %d times", n)
	}
	if !strings.Contains(text, "  HostName jump.example\n  Port 22\n  User nix\n  IdentityFile /etc/nix-keys/"+builders.DefaultSecret+"/ssh-privatekey\n") {
		t.Errorf("ssh_config lacks the defaults:\n%s", text)
	}
	if !strings.Contains(content.Data[KeyKnownHosts], "@cert-authority jump.example "+ca+"\n") {
		t.Errorf("known_hosts lacks the authority:\n%s", content.Data[KeyKnownHosts])
	}
	for line := range strings.Lines(text) {
		if host, ok := strings.CutPrefix(line, "Host "); ok && len(host) > maxAlias+1 {
			t.Errorf("alias %q is too long", host)
		}
	}
}

// The real ssh, with our files and one key, must get through the jump host that is
// meant, to the machine that is meant.
func TestOpenSSHJumpsByOurFiles(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("no ssh: install openssh-client")
	}
	private, public := sshtest.NewKeyFile(t)
	jumpPrivate, jumpPublic := sshtest.NewKeyFile(t)
	direct := func(address string) (net.Conn, error) { return net.Dial("tcp", address) }
	other := sshtest.NewKey(t)
	tests := map[string]struct {
		change      func(*v1alpha1.ProxyJump)
		wantFailure string
	}{
		"the jump host": {change: func(*v1alpha1.ProxyJump) {}},
		"another jump host": {
			change:      func(j *v1alpha1.ProxyJump) { j.HostKeys = []string{keyLine(other.PublicKey())} },
			wantFailure: "Host key verification failed",
		},
		"not with the machine's key": {
			change:      func(j *v1alpha1.ProxyJump) { j.Credentials = nil },
			wantFailure: "Permission denied",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			jump := sshtest.New(t, sshtest.Behavior{Forward: direct, Users: []string{"hop"}, AuthorizedKeys: []ssh.PublicKey{jumpPublic}})
			server := sshtest.New(t, sshtest.Behavior{
				Exec: func(string, sshtest.Stdio) int { return 42 }, Users: []string{"nix"}, AuthorizedKeys: []ssh.PublicKey{public},
			})
			content := render(t, behind(
				machine(v1alpha1.Endpoint{Host: "127.0.0.1", Port: portOf(t, server), HostKeys: []string{keyLine(server.HostKey())}}),
				func(j *v1alpha1.ProxyJump) {
					j.Host, j.Port, j.User, j.HostKeys = "127.0.0.1", portOf(t, jump), "hop", []string{keyLine(jump.HostKey())}
					j.Credentials = &v1alpha1.Credentials{SecretRefs: []v1alpha1.SecretReference{{Name: "jump-key"}}}
					tc.change(j)
				}))
			dir := t.TempDir()
			for file, text := range map[string]string{
				KeySSHConfig: content.Data[KeySSHConfig], KeyKnownHosts: content.Data[KeyKnownHosts],
				"keys/jump-key/ssh-privatekey": string(jumpPrivate), "keys/" + builders.DefaultSecret + "/ssh-privatekey": string(private),
			} {
				path := filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				text = strings.NewReplacer(MountPath, dir, KeysPath, filepath.Join(dir, "keys")).Replace(text)
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			command := exec.CommandContext(t.Context(), program, "-F", filepath.Join(dir, KeySSHConfig),
				"-i", filepath.Join(dir, "keys", builders.DefaultSecret, "ssh-privatekey"), "nix@a.x.nixbuilder", "nix-daemon", "--stdio")
			output, _ := command.CombinedOutput()
			status := command.ProcessState.ExitCode()
			if tc.wantFailure == "" && (status != 42 || jump.Accepted() != 1) {
				t.Errorf("ssh ended with status %d, want that of the command, 42; %d connections to the jump host:\n%s", status, jump.Accepted(), output)
			}
			if tc.wantFailure != "" && (status != 255 || !strings.Contains(string(output), tc.wantFailure)) {
				t.Errorf("ssh ended with status %d and says %q, want 255 and %q", status, output, tc.wantFailure)
			}
		})
	}
}

func portOf(t *testing.T, server *sshtest.Server) int32 {
	t.Helper()
	_, text, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return int32(port)
}
