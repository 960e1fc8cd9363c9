// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/doctor"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/roster"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/setup"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// result is what a run of the program said.
type result struct {
	status         int
	stdout, stderr string
}

func runProgram(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := run(t.Context(), streams{strings.NewReader(""), &stdout, &stderr}, args)
	return result{status, stdout.String(), stderr.String()}
}

func TestCommandLines(t *testing.T) {
	t.Parallel()
	nowhere := filepath.Join(t.TempDir(), "kubeconfig")
	tests := map[string]struct {
		args       []string
		want       int
		wantStdout string
		wantStderr string
	}{
		"none":                        {nil, 0, "Available Commands:", ""},
		"help names the plugin":       {[]string{"doctor", "--help"}, 0, "kubectl nixbuilder doctor [NAME[/ENDPOINT]...]", ""},
		"unknown command":             {[]string{"docter"}, 64, "", `error: unknown command "docter" (kubectl nixbuilder --help)`},
		"unknown flag":                {[]string{"list", "--x"}, 64, "", "error: unknown flag: --x (kubectl nixbuilder list --help)"},
		"unknown format":              {[]string{"list", "-o", "yaml"}, 64, "", `no output format "yaml", only json and name`},
		"too many arguments":          {[]string{"list", "x"}, 64, "", "list --help"},
		"nothing to cordon":           {[]string{"cordon", "--reason", "x"}, 64, "", "say what to cordon: NAME or NAME/ENDPOINT"},
		"no reason":                   {[]string{"cordon", "x"}, 64, "", "say why with --reason"},
		"no time":                     {[]string{"cordon", "x", "--reason", "x", "--until", "later"}, 64, "", `--until: "later" is not a time`},
		"no system":                   {[]string{"why"}, 64, "", "say the SYSTEM of the build"},
		"no kubeconfig":               {[]string{"list", "--kubeconfig", nowhere}, 2, "", "error: read the kubeconfig"},
		"names and a URI":             {[]string{"doctor", "x", "--uri", "ssh-ng://x"}, 64, "", "with --uri or --machines there are no NAMEs"},
		"a name of three parts":       {[]string{"doctor", "a/b/c", "--kubeconfig", apiServer(t)}, 64, "", "is neither NAME nor NAME/ENDPOINT"},
		"no such endpoint":            {[]string{"doctor", "linux/b", "--kubeconfig", apiServer(t)}, 2, "", "NixBuilder linux has no endpoint b, only a"},
		"names and all namespaces":    {[]string{"doctor", "x", "-A"}, 64, "", "with -A there are no NAMEs"},
		"a key for the operator":      {[]string{"doctor", "x", "--identity", "k"}, 64, "", "in a cluster the NixBuilder says all that"},
		"a line that is none":         {[]string{"doctor", "--uri", "ssh-ng://x - - many"}, 64, "", "error: --uri:1:16"},
		"a machine without a key":     {[]string{"doctor", "--uri", "ssh-ng://x", "--identity", nowhere}, 64, "", "error: --identity: open "},
		"no such machines file":       {[]string{"doctor", "--machines", nowhere}, 64, "", "error: read the machines file: open "},
		"no URI":                      {[]string{"doctor", "--uri", ""}, 64, "", "error: --uri \"\" names no machine"},
		"another URI":                 {[]string{"doctor", "--uri", "http://x"}, 64, "", "only ssh-ng:// and ssh://"},
		"no jump host":                {[]string{"doctor", "--uri", "ssh-ng://x", "--proxy-jump", "a b@"}, 64, "", "--proxy-jump"},
		"a URI in all namespaces":     {[]string{"doctor", "--uri", "ssh-ng://x", "-A"}, 64, "", "-A and --timeout are for a cluster"},
		"a URI and a timeout":         {[]string{"doctor", "--uri", "ssh-ng://x", "--timeout", "3s"}, 64, "", "--step-timeout bounds each step"},
		"time that runs backwards":    {[]string{"doctor", "--timeout", "-3s"}, 64, "", "not negative ones"},
		"steps that run backwards":    {[]string{"doctor", "--uri", "ssh-ng://x", "--step-timeout", "-3s"}, 64, "", "not negative ones"},
		"steps of the operator":       {[]string{"doctor", "--step-timeout", "3s"}, 64, "", "--step-timeout and --canary go with --uri"},
		"help":                        {[]string{"help", "doctor"}, 0, "kubectl nixbuilder doctor [NAME[/ENDPOINT]...]", ""},
		"help without a topic":        {[]string{"help"}, 0, "Available Commands:", ""},
		"help about nothing":          {[]string{"help", "nope"}, 64, "", `error: there is no help about "nope"`},
		"setup with a bad kind":       {[]string{"setup", "--for", "windows"}, 64, "", `--for "windows" cannot be used here: it has to be linux, nixos or macos`},
		"setup to pipe without a key": {[]string{"setup", "--only", "machine"}, 64, "", "--only needs --public-key"},
		"setup of nothing":            {[]string{"setup", "--only", "x"}, 64, "", "--only is machine or cluster"},
		"setup":                       {[]string{"setup", "-n", "ci"}, 0, "kubectl -n ci create secret generic builder-key", ""},
		"completion":                  {[]string{"__complete", "setup", "--for", ""}, 0, "linux\nnixos\nmacos\n", ""},
		"version":                     {[]string{"version"}, 0, "\n", ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := runProgram(t, tc.args...)
			if got.status != tc.want || !strings.Contains(got.stdout, tc.wantStdout) || !strings.Contains(got.stderr, tc.wantStderr) {
				t.Errorf("%+v, want %d, %q, %q", got, tc.want, tc.wantStdout, tc.wantStderr)
			}
		})
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	key, _ := sshtest.NewKeyFile(t)
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, key, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	args := []string{"doctor", "--uri", "ssh-ng://192.0.2.1", "--trust-on-first-use", "--identity", file}
	if got := run(ctx, streams{strings.NewReader(""), &out, &out}, args); got != statusInterrupted || out.Len() > 0 {
		t.Errorf("status %d: %s", got, out.String())
	}
}

func TestSetupAsJSON(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "k.pub")
	if err := os.WriteFile(file, []byte(builders.HostKey("k")+" me@here\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := runProgram(t, "setup", "--public-key", file, "-o", "json")
	var text setup.Text
	if err := json.Unmarshal([]byte(got.stdout), &text); err != nil {
		t.Fatalf("%v: %+v", err, got)
	}
	if want := "restrict " + builders.HostKey("k") + " me@here"; text.AuthorizedKey != want {
		t.Errorf("key %q, want %q", text.AuthorizedKey, want)
	}
	if !strings.Contains(text.Cluster, "ssh-privatekey="+filepath.Join(dir, "k")+"\n") {
		t.Errorf("for the cluster:\n%s", text.Cluster)
	}
}

// Every flag, every command and every field of every document is in the page about the
// plugin.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/kubectl.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	root := newRoot(streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}})
	for _, command := range root.Commands() {
		if !strings.Contains(text, "`"+command.Name()+"`") && !strings.Contains(text, "kubectl nixbuilder "+command.Name()) {
			t.Errorf("docs/kubectl.md lacks %s", command.Name())
		}
		command.Flags().VisitAll(func(flag *pflag.Flag) { expectFlag(t, command, text, flag) })
	}
	for _, document := range []any{doctor.Report{}, roster.Roster{}, roster.File{}, roster.Answer{}, setup.Text{}, cordoned{}} {
		expectFields(t, text, reflect.TypeOf(document))
	}
}

// obvious are flags of setup whose names say what they are; its help lists them.
var obvious = map[string]bool{"help": true, "as-group": true, "name": true, "secret": true, "port": true, "verbose": true, "all-namespaces": true, "output": true}

func expectFlag(t *testing.T, command *cobra.Command, text string, flag *pflag.Flag) {
	t.Helper()
	if !obvious[flag.Name] && !strings.Contains(text, "--"+flag.Name) {
		t.Errorf("docs/kubectl.md lacks --%s of %s", flag.Name, command.Name())
	}
}

func expectFields(t *testing.T, text string, kind reflect.Type) {
	t.Helper()
	for kind.Kind() == reflect.Slice || kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	if kind.Kind() != reflect.Struct || kind.PkgPath() == "time" {
		return
	}
	for i := range kind.NumField() {
		field := kind.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, "`"+name+"[]`") {
			t.Errorf("docs/kubectl.md lacks the field %q of %s", name, kind)
		}
		expectFields(t, text, field.Type)
	}
}

func TestEndpointsThatAreNamed(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		names    []string
		want     map[string][]string
		wantName string
	}{
		"a builder":                {[]string{"linux"}, map[string][]string{"linux": nil}, "linux"},
		"as kubectl prints it":     {[]string{"nixbuilder.nixbuilder.io/linux"}, map[string][]string{"linux": nil}, "linux"},
		"two machines":             {[]string{"linux/a", "linux/b"}, map[string][]string{"linux": {"a", "b"}}, "linux"},
		"all, and one of them":     {[]string{"linux", "linux/b"}, map[string][]string{"linux": nil}, "linux"},
		"one of them, and all":     {[]string{"linux/b", "linux"}, map[string][]string{"linux": nil}, "linux"},
		"one of another, besides":  {[]string{"linux", "mac/a"}, map[string][]string{"linux": nil, "mac": {"a"}}, "linux"},
		"all in between of others": {[]string{"linux/a", "linux", "linux/b"}, map[string][]string{"linux": nil}, "linux"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asking doctor.Asking
			if err := choose(&asking, tc.names); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(asking.Only, tc.want) || asking.Names[0] != tc.wantName {
				t.Errorf("%+v, want %v", asking, tc.want)
			}
		})
	}
}
