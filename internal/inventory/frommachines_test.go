// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package inventory

import (
	"encoding/base64"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
)

func encoded(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func parse(t *testing.T, text string) []machines.Machine {
	t.Helper()
	list, err := machines.Parse("m", []byte(text), machines.ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestFromMachines(t *testing.T) {
	t.Parallel()
	// base is what "ssh-ng://h x86_64-linux" becomes.
	base := func(change func(*Endpoint)) Endpoint {
		endpoint := small(FileBuilder, "h")
		endpoint.Systems = []string{"x86_64-linux"}
		change(&endpoint)
		return endpoint
	}
	tests := map[string]struct {
		text string
		want []Endpoint
	}{
		"nothing": {text: "# none\n"},
		"all columns": {
			text: "ssh-ng://nix@mac?remote-program=/opt/nix-daemon b,a /key 8 2 y,x z " + encoded(keyA+" root@mac\n"),
			want: []Endpoint{base(func(e *Endpoint) {
				e.Name, e.Host, e.User, e.RemoteProgram, e.IdentityFile = "mac", "mac", "nix", "/opt/nix-daemon", "/key"
				e.Systems, e.SupportedFeatures, e.MandatoryFeatures = []string{"a", "b"}, []string{"x", "y"}, []string{"z"}
				e.Slots, e.SpeedFactor, e.HostKeys = 8, 2, []string{keyA + " root@mac"}
			})},
		},
		"no columns": {text: "ssh-ng://h", want: []Endpoint{base(func(e *Endpoint) { e.Systems = []string{"test-system"} })}},
		"ssh is spoken to as ssh-ng": {
			text: "ssh://h?remote-program=/opt/nix/bin/nix-store x86_64-linux",
			want: []Endpoint{base(func(e *Endpoint) { e.RemoteProgram = "/opt/nix/bin/nix-daemon" })},
		},
		"program on the PATH": {
			text: "ssh://h?remote-program=nix-store x86_64-linux",
			want: []Endpoint{base(func(e *Endpoint) { e.RemoteProgram = "nix-daemon" })},
		},
		"ports": {
			text: "ssh-ng://h:2222 x86_64-linux\nssh-ng://h?port=2223 x86_64-linux",
			want: []Endpoint{
				base(func(e *Endpoint) { e.Name, e.Port = "h:2222", 2222 }),
				base(func(e *Endpoint) { e.Name, e.Port = "h:2223", 2223 }),
			},
		},
		"the same host thrice, and one that has the name already": {
			text: "ssh-ng://h x86_64-linux\nssh-ng://h-2 x86_64-linux\nssh-ng://h x86_64-linux\nssh-ng://h x86_64-linux",
			want: []Endpoint{
				base(func(*Endpoint) {}),
				base(func(e *Endpoint) { e.Name, e.Host = "h-2", "h-2" }),
				base(func(e *Endpoint) { e.Name = "h-3" }),
				base(func(e *Endpoint) { e.Name = "h-4" }),
			},
		},
		"key and host key in the URI": {
			text: "ssh-ng://h?ssh-key=/k&base64-ssh-public-host-key=" + strings.TrimRight(encoded(keyA), "=") + " x86_64-linux",
			want: []Endpoint{base(func(e *Endpoint) { e.IdentityFile, e.HostKeys = "/k", []string{keyA} })},
		},
		"columns go before the URI": {
			text: "ssh-ng://h?ssh-key=/k&base64-ssh-public-host-key=" + encoded(keyA) + " x86_64-linux /c 1 1 - - " + encoded(keyB),
			want: []Endpoint{base(func(e *Endpoint) { e.IdentityFile, e.HostKeys = "/c", []string{keyB} })},
		},
		"several host keys": {
			text: "ssh-ng://h x86_64-linux - 1 1 - - " + encoded(keyB+"\n\n"+keyA+"\n"),
			want: []Endpoint{base(func(e *Endpoint) { e.HostKeys = []string{keyA, keyB} })},
		},
		"fractions keep their ratio": {
			text: "ssh-ng://h x86_64-linux - 1 0.5\nssh-ng://i x86_64-linux - 1 1\nssh-ng://j x86_64-linux - 1 0.0001",
			want: []Endpoint{
				base(func(e *Endpoint) { e.SpeedFactor = 50 }),
				base(func(e *Endpoint) { e.Name, e.Host, e.SpeedFactor = "i", "i", 100 }),
				base(func(e *Endpoint) { e.Name, e.Host = "j", "j" }),
			},
		},
		"IPv6": {
			text: "ssh-ng://[2001:db8::1] x86_64-linux",
			want: []Endpoint{base(func(e *Endpoint) { e.Name, e.Host = "2001:db8::1", "2001:db8::1" })},
		},
		"more jobs than slots": {
			text: "ssh-ng://h x86_64-linux - 1000000",
			want: []Endpoint{base(func(e *Endpoint) { e.Slots = MaxSlots })},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, unusable := FromMachines(parse(t, tc.text), FileOptions{System: "test-system"})
			if len(unusable) != 0 {
				t.Errorf("unusable: %v", unusable)
			}
			if diff := cmp.Diff(Document{SchemaVersion: 1, Builders: tc.want}, got); diff != "" {
				t.Errorf("FromMachines(%q) (-want +got):\n%s", tc.text, diff)
			}
			if _, err := Encode(got); err != nil {
				t.Errorf("the document cannot be written: %v", err)
			}
		})
	}
}

func TestFromMachinesDefaults(t *testing.T) {
	t.Parallel()
	got, _ := FromMachines(parse(t, "ssh-ng://h"), FileOptions{User: "nix"})
	if len(got.Builders) != 1 || got.Builders[0].User != "nix" {
		t.Fatalf("document %+v, want one endpoint of user nix", got)
	}
	system := got.Builders[0].Systems[0]
	if !strings.HasSuffix(system, "-"+runtime.GOOS) {
		t.Errorf("system %q is not one of %s", system, runtime.GOOS)
	}
	if runtime.GOARCH == "amd64" && !strings.HasPrefix(system, "x86_64-") {
		t.Errorf("system %q is not one of %s", system, runtime.GOARCH)
	}
}

func TestFromMachinesReportsUnusableLines(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ line, want string }{
		"unix socket":        {"unix:///run/nix.sock", "only ssh-ng:// and ssh:// machines"},
		"the store itself":   {"daemon", "only ssh-ng:// and ssh:// machines"},
		"localhost":          {"ssh-ng://localhost?remote-program=/x", "a program in the client"},
		"no jobs":            {"ssh-ng://h - - 0", "it takes 0 jobs"},
		"remote store":       {"ssh-ng://h?remote-store=/mnt", "remote-store is not supported"},
		"path":               {"ssh-ng://h/x", "the path /x after the host"},
		"program of two":     {"ssh-ng://h?remote-program=sudo%20nix-daemon", `"sudo nix-daemon" has to be one path`},
		"program with shell": {"ssh-ng://h?remote-program=a;b", "has to be one path"},
		"other ssh program":  {"ssh://h?remote-program=/bin/wrap", "is not nix-store"},
		"key without type":   {"ssh-ng://h - - 1 1 - - " + encoded("AAAAC3Nz"), `encode the whole file with "base64 -w0"`},
		"raw key blob":       {"ssh-ng://h - - 1 1 - - AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "host key: not one line"},
		"key not encoded":    {"ssh-ng://h?base64-ssh-public-host-key=%2A", "is not valid base64"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			line := strings.ReplaceAll(tc.line, ";", "%3B")
			got, unusable := FromMachines(parse(t, "ssh-ng://good\n  "+line), FileOptions{})
			if len(got.Builders) != 1 || got.Builders[0].Host != "good" {
				t.Errorf("endpoints %v, want the good one", got.Builders)
			}
			if len(unusable) != 1 {
				t.Fatalf("unusable: %v, want one line", unusable)
			}
			text := unusable[0].String()
			if !strings.HasPrefix(text, "m:2:3: ") || !strings.Contains(text, tc.want) {
				t.Errorf("report %q does not begin with the position or say %q", text, tc.want)
			}
		})
	}
}
