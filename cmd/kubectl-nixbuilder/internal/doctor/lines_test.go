// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package doctor

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// home is a user's directory with a private key where ssh looks for it.
func home(t *testing.T) (dir, keyFile string) {
	t.Helper()
	dir = t.TempDir()
	key, _ := sshtest.NewKeyFile(t)
	keyFile = filepath.Join(dir, ".ssh", "id_ed25519")
	write(t, keyFile, string(key))
	return dir, keyFile
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSpots(t *testing.T) {
	t.Parallel()
	dir, keyFile := home(t)
	key, other := builders.HostKey("m"), builders.HostKey("other")
	write(t, filepath.Join(dir, ".ssh/known_hosts"), "known.example "+key+"\n@cert-authority *.ca.example "+other+"\njump.example "+other+"\n")
	file := filepath.Join(dir, "host.pub")
	write(t, file, other+" root@m\n")
	inLine := base64.StdEncoding.EncodeToString([]byte(key))

	tests := map[string]struct {
		lines       Lines
		want        probe.Target // as far as compared
		wantProblem string
	}{
		"a URI":                          {Lines{URIs: []string{"ssh-ng://nix@known.example"}}, probe.Target{Host: "known.example", Port: 22, User: "nix", HostKeys: []string{key}}, ""},
		"no user is root":                {Lines{URIs: []string{"ssh-ng://known.example"}}, probe.Target{Host: "known.example", Port: 22, User: "root", HostKeys: []string{key}}, ""},
		"a port":                         {Lines{URIs: []string{"ssh-ng://nix@x.example:2222"}}, probe.Target{Host: "x.example", Port: 2222, User: "nix"}, ""},
		"an authority":                   {Lines{URIs: []string{"ssh-ng://nix@m.ca.example"}}, probe.Target{Host: "m.ca.example", Port: 22, User: "nix", CertificateAuthorities: []string{other}}, ""},
		"a program":                      {Lines{URIs: []string{"ssh-ng://nix@x?remote-program=/p/nix-daemon"}}, probe.Target{Host: "x", Port: 22, User: "nix", RemoteProgram: "/p/nix-daemon"}, ""},
		"the program of the flag":        {Lines{URIs: []string{"ssh-ng://nix@x?remote-program=/p"}, RemoteProgram: "/q"}, probe.Target{Host: "x", Port: 22, User: "nix", RemoteProgram: "/q"}, ""},
		"a line":                         {Lines{URIs: []string{"ssh-ng://nix@x a-linux,b-linux " + keyFile + " 4 1 kvm gpu " + inLine}}, probe.Target{Host: "x", Port: 22, User: "nix", HostKeys: []string{key}, Systems: []string{"a-linux", "b-linux"}, Features: []string{"kvm", "gpu"}}, ""},
		"the flag's host key":            {Lines{URIs: []string{"ssh-ng://nix@x - - 4 1 - - " + inLine}, HostKeys: []string{other}}, probe.Target{Host: "x", Port: 22, User: "nix", HostKeys: []string{other}}, ""},
		"a host key from a file":         {Lines{URIs: []string{"ssh-ng://nix@x"}, HostKeys: []string{file}}, probe.Target{Host: "x", Port: 22, User: "nix", HostKeys: []string{other}}, ""},
		"a key that cannot be read":      {Lines{URIs: []string{"ssh-ng://nix@x - /nonexistent"}}, probe.Target{}, "the private key cannot be read (--identity names another)"},
		"the flag's key goes before":     {Lines{URIs: []string{"ssh-ng://nix@x - /nonexistent"}, Identities: []string{keyFile}}, probe.Target{Host: "x", Port: 22, User: "nix"}, ""},
		"another store":                  {Lines{File: "-", Stdin: strings.NewReader("s3://bucket\n")}, probe.Target{}, "only ssh-ng:// and ssh:// machines"},
		"a jump host":                    {Lines{URIs: []string{"ssh-ng://nix@x"}, ProxyJump: "me@jump.example"}, probe.Target{Host: "x", Port: 22, User: "nix", Jump: &probe.Jump{Host: "jump.example", Port: 22, User: "me", HostKeys: []string{other}}}, ""},
		"a jump host that is not known":  {Lines{URIs: []string{"ssh-ng://nix@x"}, ProxyJump: "[::1]:2222"}, probe.Target{}, "host key of the jump host [::1]:2222"},
		"a file from standard input":     {Lines{File: "-", Stdin: strings.NewReader("# comment\nssh://nix@x?remote-program=/n/nix-store\n")}, probe.Target{Host: "x", Port: 22, User: "nix", RemoteProgram: "/n/nix-daemon"}, ""},
		"a user's key where none is set": {Lines{URIs: []string{"ssh-ng://nix@x"}, Home: "/nonexistent"}, probe.Target{}, "there is none in /nonexistent/.ssh"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.lines.Home == "" {
				tc.lines.Home = dir
			}
			spots, err := tc.lines.spots()
			if err != nil || len(spots) != 1 {
				t.Fatalf("%d spots, %v", len(spots), err)
			}
			if tc.wantProblem != "" {
				if !strings.Contains(spots[0].problem, tc.wantProblem) {
					t.Errorf("problem %q, want %q", spots[0].problem, tc.wantProblem)
				}
				return
			}
			got := spots[0].target
			if spots[0].problem != "" || len(got.Credentials) != 1 || got.Credentials[0].Name != keyFile || !got.Discovery {
				t.Errorf("problem %q, target %+v", spots[0].problem, got)
			}
			jump := got.Jump
			if jump != nil {
				jump.Credentials = nil
			}
			compared := probe.Target{
				Host: got.Host, Port: got.Port, User: got.User, RemoteProgram: got.RemoteProgram, HostKeys: got.HostKeys,
				CertificateAuthorities: got.CertificateAuthorities, Systems: got.Systems, Features: got.Features, Jump: jump,
			}
			if !equalAsJSON(t, tc.want, compared) {
				t.Errorf("target %+v, want %+v", compared, tc.want)
			}
		})
	}
}

// equalAsJSON compares what can be seen of values with unexported fields.
func equalAsJSON(t *testing.T, a, b any) bool {
	t.Helper()
	text := func(v any) string {
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(out), "null", "[]")
	}
	return cmp.Equal(text(a), text(b))
}

func TestLinesThatAreNone(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		lines Lines
		want  string
	}{
		"a broken line":       {Lines{URIs: []string{"ssh-ng://x - - many"}}, "--uri:1:16"},
		"no such file":        {Lines{File: "/nonexistent"}, "read the machines file"},
		"an empty file":       {Lines{File: "-", Stdin: strings.NewReader("# nobody\n")}, "no machine is named"},
		"a file without end":  {Lines{File: "/dev/zero"}, "more than 1048576 bytes"},
		"no URI":              {Lines{URIs: []string{""}}, "--uri \"\" names no machine; write"},
		"another store":       {Lines{URIs: []string{"ssh-ng://x", "http://x"}}, "--uri \"http://x\": only ssh-ng:// and ssh://"},
		"no such key":         {Lines{URIs: []string{"ssh-ng://x"}, Identities: []string{"/nonexistent"}}, "--identity: open /nonexistent"},
		"no such host key":    {Lines{URIs: []string{"ssh-ng://x"}, HostKeys: []string{"/nonexistent"}}, "neither a public key line nor a file"},
		"no jump host":        {Lines{URIs: []string{"ssh-ng://x"}, ProxyJump: "a b@"}, "--proxy-jump"},
		"words as jump host":  {Lines{URIs: []string{"ssh-ng://x"}, ProxyJump: "a b"}, "--proxy-jump"},
		"two jump hosts":      {Lines{URIs: []string{"ssh-ng://x"}, ProxyJump: "a,b"}, "--proxy-jump"},
		"a port that is none": {Lines{URIs: []string{"ssh-ng://x"}, ProxyJump: "a:b"}, "--proxy-jump: "},
		"no known_hosts":      {Lines{URIs: []string{"ssh-ng://x"}, KnownHosts: []string{"/nonexistent"}}, "--known-hosts"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.lines.Home = t.TempDir()
			_, err := Probe(t.Context(), tc.lines, &notes{})
			if usage := new(UsageError); !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %s", err, tc.want)
			}
		})
	}
}

// Machines that are well, wrong and not to be found out about, all in one report, in
// the order in which they are named, and without any key in it.
func TestProbe(t *testing.T) {
	t.Parallel()
	dir, keyFile := home(t)
	nix := daemontest.New(daemontest.Options{Trust: daemon.Trusted})
	defer nix.Close()
	well := sshtest.New(t, sshtest.Behavior{Exec: sshtest.NixShell(nix.Serve)})
	silent := sshtest.New(t, sshtest.Behavior{Fault: sshtest.FaultHangUp})
	write(t, filepath.Join(dir, ".ssh/known_hosts"), knownLine(t, well)+knownLine(t, silent))
	lines := Lines{Home: dir, URIs: []string{"ssh-ng://nix@" + silent.Addr(), "ssh-ng://nix@" + well.Addr()}, File: "-", Stdin: strings.NewReader("local\n")}
	report, err := Probe(t.Context(), lines, &notes{})
	if err != nil {
		t.Fatal(err)
	}
	var got []Finding
	for _, m := range report.Builders[0].Machines {
		got = append(got, m.Finding)
	}
	if diff := cmp.Diff([]Finding{Wrong, Well, Unclear}, got); diff != "" {
		t.Errorf("(-want +got):\n%s\n%+v", diff, report)
	}
	steps := report.Builders[0].Machines[1].Steps
	if len(steps) != len(probe.Steps()) || steps[0].Type != "Reachable" || steps[0].Status != "True" {
		t.Errorf("steps %+v", steps)
	}
	secret, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(report)
	if err != nil || strings.Contains(string(text), strings.Split(string(secret), "\n")[1]) {
		t.Errorf("the report has the key in it, or %v", err)
	}
}

func knownLine(t *testing.T, server *sshtest.Server) string {
	t.Helper()
	address, err := net.ResolveTCPAddr("tcp", server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return sshconn.KnownHostName(address.IP.String(), address.Port) + " " + sshconn.AuthorizedKey(server.HostKey()) + "\n"
}
