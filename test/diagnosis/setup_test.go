// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// newcomer is somebody with a machine, a cluster and the plugin, who types what the
// plugin prints.
type newcomer struct {
	*testing.T
	dir       string // where the keys lie
	env       []string
	namespace string
	builder   *nixlab.Builder
}

// bare makes a lab's builder one that nobody has set up: there is Nix and an SSH
// server with its usual key, which takes keys from home directories.
func (s *site) bare(t *testing.T, name string, version nixlab.Version) *newcomer {
	t.Helper()
	n := &newcomer{T: t, dir: t.TempDir(), namespace: name}
	n.builder = s.newBuilder(t, nixlab.BuilderOptions{
		Name: name, Version: version, SSHDConfig: "Match User nix-ssh\nAuthorizedKeysFile .ssh/authorized_keys",
	})
	run(t, n.builder, "cd /etc/ssh && cp lab_hostkey ssh_host_ed25519_key && ssh-keygen -yf lab_hostkey >ssh_host_ed25519_key.pub")
	kubeconfig := filepath.Join(n.dir, "kubeconfig")
	if err := s.environment.WriteKubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	n.env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HOME="+n.dir,
		"PATH="+filepath.Dir(s.environment.Kubectl())+":"+os.Getenv(programsVariable)+":"+os.Getenv("PATH"))
	if err := s.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		t.Fatal(err)
	}
	n.types(0, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "nix-builder")
	return n
}

// types runs a command in the newcomer's directory, and expects an exit status.
func (n *newcomer) types(status int, args ...string) string {
	n.Helper()
	// env looks for programs in the newcomer's PATH.
	command := exec.CommandContext(n.Context(), "env", args...)
	command.Dir, command.Env = n.dir, n.env
	output, err := command.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.Fatalf("%q: %v", args, err)
	}
	if got := command.ProcessState.ExitCode(); got != status {
		n.Fatalf("%q: status %d, want %d\n%s", args, got, status, output)
	}
	return string(output)
}

// What setup prints makes a machine with nothing but Nix and sshd a builder that is
// Ready and builds, with every restriction of the key that it offers.
func TestSetupMakesABuilder(t *testing.T) {
	s := newSite(t)
	for name, tc := range map[string]struct {
		args     []string
		versions []nixlab.Version
	}{
		"plain":       {nil, nixlab.Versions()},
		"from":        {[]string{"--from", "127.0.0.0/8", "--from", "192.0.2.0/24"}, []nixlab.Version{nixlab.Newest}},
		"daemon-only": {[]string{"--daemon-only", "--system", nixlab.System()}, []nixlab.Version{nixlab.Nix28, nixlab.Newest}},
	} {
		for _, version := range tc.versions {
			t.Run(name+" "+string(version), func(t *testing.T) {
				t.Parallel()
				n := s.bare(t, "setup-"+name+"-"+strings.ReplaceAll(string(version), ".", ""), version)
				n.setUp(tc.args)
			})
		}
	}
	t.Run("module for NixOS", func(t *testing.T) {
		t.Parallel()
		s.bare(t, "setup-nixos", nixlab.Nix28).readModule()
	})
}

func (n *newcomer) setUp(args []string) {
	n.Helper()
	args = append([]string{"kubectl", "nixbuilder", "setup", "--public-key", "nix-builder.pub", "-n", n.namespace}, args...)
	script := n.types(0, append(slices.Clone(args), "--only", "machine")...)
	said := run(n.T, n.builder, script)
	if again := run(n.T, n.builder, script); again != said {
		n.Errorf("a second time the script says\n%s\nnot\n%s", again, said)
	}
	// That is what the script asks for where there is no systemd.
	if err := n.builder.RestartDaemon(n.Context()); err != nil {
		n.Fatal(err)
	}
	run(n.T, n.builder, "/usr/sbin/sshd -t -o HostKey=/etc/ssh/lab_hostkey -f /etc/ssh/sshd_config.d/10-nix-builder.conf")
	key := regexp.MustCompile(`(?m)^hostKeys: (ssh-ed25519 \S+)$`).FindStringSubmatch(said)
	if key == nil {
		n.Fatalf("the script does not tell the host key:\n%s", said)
	}
	script = n.types(0, append(slices.Clone(args), "--only", "cluster", "--host", n.builder.IP(), "--port", fmt.Sprint(n.builder.Port()), "--host-key", key[1])...)
	// The last command of the script is doctor, which says that all is well.
	said = n.types(0, "sh", "-ec", script)
	if !strings.Contains(said, "all well") {
		n.Errorf("doctor says:\n%s", said)
	}
	n.types(0, "kubectl", "-n", n.namespace, "wait", "nixbuilder/linux", "--for=condition=Ready", "--timeout=60s")
	n.types(0, "kubectl", "-n", n.namespace, "patch", "nixbuilder", "linux", "--type=merge", "-p", `{"spec":{"probe":{"canary":"Enabled"}}}`)
	said = n.types(0, "kubectl", "nixbuilder", "-n", n.namespace, "doctor", "--verbose")
	if !regexp.MustCompile(`SystemsVerified +ok .*\n.*a tiny build succeeds`).MatchString(said) {
		n.Errorf("no build shows that it works:\n%s", said)
	}
	n.types(0, "kubectl", "nixbuilder", "-n", n.namespace, "why", nixlab.System())

	// Without the cluster, from here: the same.
	uri := fmt.Sprintf("ssh-ng://nix-ssh@%s", n.builder.Address())
	said = n.types(0, "kubectl-nixbuilder", "doctor", "--uri", uri, "--identity", "nix-builder", "--host-key", key[1], "--canary", "-o", "json")
	var report struct {
		Builders []struct{ Finding string }
	}
	if err := json.Unmarshal([]byte(said), &report); err != nil || len(report.Builders) != 1 || report.Builders[0].Finding != "Well" {
		n.Errorf("doctor --uri: %v:\n%s", err, said)
	}
}

// readModule expects the module for NixOS to be Nix.
func (n *newcomer) readModule() {
	n.Helper()
	for _, user := range []string{"nix-ssh", "root", "a.b"} {
		module := n.types(0, "kubectl", "nixbuilder", "setup", "--for=nixos", "--public-key=nix-builder.pub", "--only=machine", "--user="+user)
		if err := n.builder.WriteFile("/tmp/module.nix", module, 0o644); err != nil {
			n.Fatal(err)
		}
		run(n.T, n.builder, "nix-instantiate --parse /tmp/module.nix >/dev/null")
		got := run(n.T, n.builder, "nix-instantiate --eval --strict --json -E '(import /tmp/module.nix).services.openssh.settings.ClientAliveInterval'")
		if strings.TrimSpace(got) != "15" {
			n.Errorf("for %s the module says %s", user, got)
		}
	}
}
