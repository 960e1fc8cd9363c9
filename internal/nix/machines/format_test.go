// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFormat(t *testing.T) {
	t.Parallel()
	list := []Machine{
		{
			URI:               StoreURI{Scheme: "ssh-ng", User: "nix", Host: "mac-2.example.org"},
			Systems:           []string{"aarch64-darwin", "x86_64-darwin"},
			Identity:          "/etc/nix-keys/mac/ssh-privatekey",
			MaxJobs:           8,
			SpeedFactor:       2,
			SupportedFeatures: []string{"big-parallel", "benchmark"},
			MandatoryFeatures: []string{"benchmark"},
			HostKey:           testKey,
		},
		{
			URI: StoreURI{Scheme: "ssh-ng", Host: "localhost", Params: map[string]string{
				ParamRemoteStore: "x86_64-linux.0", ParamRemoteProgram: "/run/my nix/connect",
			}},
			MaxJobs:     1,
			SpeedFactor: 1,
		},
	}
	got, err := Format(list)
	if err != nil {
		t.Fatal(err)
	}
	want := "ssh-ng://nix@mac-2.example.org aarch64-darwin,x86_64-darwin /etc/nix-keys/mac/ssh-privatekey 8 2 " +
		"big-parallel,benchmark benchmark c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSUFBQUFBQUFBQUFBQUFBQUFBQUFB" +
		"QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=\n" +
		"ssh-ng://localhost?remote-program=/run/my%20nix/connect&remote-store=x86_64-linux.0 - - 1 1 - - -\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("Format (-want +got):\n%s", diff)
	}
	again, err := ParsePortable("machines", got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(list, again, ignoreOrigin); diff != "" {
		t.Errorf("reading the text again (-want +got):\n%s", diff)
	}
}

func TestFormatOfNothing(t *testing.T) {
	t.Parallel()
	got, err := Format(nil)
	if err != nil || len(got) != 0 {
		t.Errorf("Format(nil) = %q, %v", got, err)
	}
}

func TestFormatRefuses(t *testing.T) {
	t.Parallel()
	good := Machine{
		URI: StoreURI{Scheme: "ssh-ng", User: "nix", Host: "mac"}, Systems: []string{"x86_64-linux"},
		Identity: "/key", MaxJobs: 1, SpeedFactor: 1, HostKey: testKey,
	}
	params := func(name, value string) func(*Machine) {
		return func(m *Machine) { m.URI.Params = map[string]string{name: value} }
	}
	tests := map[string]struct {
		change func(*Machine)
		want   string // part of the error
	}{
		"no jobs":                  {func(m *Machine) { m.MaxJobs = 0 }, "a machine needs at least 1"},
		"negative jobs":            {func(m *Machine) { m.MaxJobs = -1 }, "a machine needs at least 1"},
		"fractional speed":         {func(m *Machine) { m.SpeedFactor = 1.5 }, "speed factor 1.5"},
		"speed 0":                  {func(m *Machine) { m.SpeedFactor = 0 }, "speed factor 0"},
		"speed beyond Nix's float": {func(m *Machine) { m.SpeedFactor = 1<<24 + 1 }, "speed factor 1.6777217e+07"},
		"other scheme":             {func(m *Machine) { m.URI = StoreURI{Scheme: "unix", Path: "/s"} }, `scheme "unix"`},
		"no scheme":                {func(m *Machine) { m.URI = StoreURI{Path: "auto"} }, `scheme ""`},
		"no host":                  {func(m *Machine) { m.URI.Host = "" }, `host ""`},
		"port":                     {func(m *Machine) { m.URI.Port = 2222 }, "port 2222: Nix before 2.31 takes no port"},
		"port 22":                  {func(m *Machine) { m.URI.Port = 22 }, "port 22"},
		"port parameter":           {params("port", "2222"), "port 2222"},
		"IPv6 address":             {func(m *Machine) { m.URI.Host = "fe80::1" }, "use an alias"},
		"host like an option":      {func(m *Machine) { m.URI.Host = "-x" }, `host "-x"`},
		"user with a blank":        {func(m *Machine) { m.URI.User = "a b" }, `user "a b"`},
		"path":                     {func(m *Machine) { m.URI.Path = "/x" }, `path "/x"`},
		"parameter name":           {params("a b", ""), `"a b" is not the name`},
		"parameter with a newline": {params("a", "x\ny"), "not printable"},
		"empty system":             {func(m *Machine) { m.Systems = []string{"a", ""} }, "empty element"},
		"system of two":            {func(m *Machine) { m.Systems = []string{"a,b"} }, `"a,b" has characters`},
		"system read as none":      {func(m *Machine) { m.Systems = []string{"-"} }, "read as none"},
		"system like TOML":         {func(m *Machine) { m.Systems = []string{"="} }, "TOML"},
		"feature with a semicolon": {func(m *Machine) { m.SupportedFeatures = []string{"a;b"} }, `"a;b" has characters`},
		"feature with a hash":      {func(m *Machine) { m.MandatoryFeatures = []string{"a#b"} }, `"a#b" has characters`},
		"identity with a blank":    {func(m *Machine) { m.Identity = "/a b" }, "identity file"},
		"identity beyond ASCII":    {func(m *Machine) { m.Identity = "/schlüssel" }, "identity file"},
		"identity read as none":    {func(m *Machine) { m.Identity = "-" }, "read as none"},
		"key without type":         {func(m *Machine) { m.HostKey = "AAAAC3Nz" }, "host key"},
		"key of another type":      {func(m *Machine) { m.HostKey = strings.Replace(testKey, "ed25519", "rsa", 1) }, "not of the type"},
		"two lines of keys":        {func(m *Machine) { m.HostKey = testKey + "\n" + testKey }, "not one line"},
		"key cut short":            {func(m *Machine) { m.HostKey = "ssh-ed25519 AAAA" }, "not followed by a key"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := good
			tc.change(&bad)
			got, err := Format([]Machine{good, bad})
			if err == nil {
				t.Fatalf("Format succeeded:\n%s", got)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
			var formatError *FormatError
			if !errors.As(err, &formatError) || formatError.Index != 1 {
				t.Errorf("error %#v does not name machine 1", err)
			}
		})
	}
}

// A client names lock files after the URI: <uri>-<slot> for each job and
// <uri>.upload-lock, which is the longer up to slot 9999999999.
func TestFormatLockFileName(t *testing.T) {
	t.Parallel()
	const prefix = "ssh-ng://h?remote-store="
	fits := maxFileName - len(prefix) - len(".upload-lock")
	tests := map[string]struct {
		length  int
		wantErr bool
	}{
		"longest that fits": {fits, false},
		"one byte more":     {fits + 1, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			machine := host("h")
			machine.URI.Params = map[string]string{ParamRemoteStore: strings.Repeat("x", tc.length)}
			_, err := Format([]Machine{machine})
			if (err != nil) != tc.wantErr {
				t.Errorf("Format: %v, want an error: %v", err, tc.wantErr)
			}
		})
	}
}

func TestParsePortable(t *testing.T) {
	t.Parallel()
	const good = "ssh-ng://a x86_64-linux /key 1 1 - - -\n"
	tests := map[string]struct {
		text    string
		want    int    // machines
		wantErr string // part of the error; empty for none
	}{
		"empty":                     {text: ""},
		"one comment":               {text: "# no builder is healthy\n"},
		"machine and comment":       {text: "# one\n" + good, want: 1},
		"semicolon in a comment":    {text: good + "# a; b\n", wantErr: "machines:2:1: a semicolon"},
		"indented comment":          {text: "  # a\n", wantErr: "a comment does not begin"},
		"line of blanks":            {text: good + " \n", wantErr: "machines:2:1: the line does not have eight"},
		"comment behind":            {text: strings.TrimSpace(good) + " # a\n", wantErr: "a comment does not begin"},
		"seven columns":             {text: "ssh-ng://a - - 1 1 - -\n", wantErr: "eight columns"},
		"two blanks":                {text: "ssh-ng://a  - 1 1 - - -\n", wantErr: "blanks or control characters"},
		"carriage return":           {text: "ssh-ng://a - - 1 1 - - -\r\n", wantErr: "blanks or control characters"},
		"include":                   {text: "@/etc/nix/machines\n", wantErr: "includes another"},
		"fractional speed":          {text: "ssh-ng://a - - 1 0.5 - - -\n", wantErr: "speed factor 0.5"},
		"no jobs":                   {text: "ssh-ng://a - - 0 1 - - -\n", wantErr: "at least 1"},
		"port":                      {text: "ssh-ng://a:2222 - - 1 1 - - -\n", wantErr: "port 2222"},
		"not even a machines file":  {text: "ssh-ng://a - - x 1 - - -\n", wantErr: `machines:1:16: column 4`},
		"key that ssh cannot parse": {text: "ssh-ng://a - - 1 1 - - YWI=\n", wantErr: "host key"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParsePortable("machines", []byte(tc.text))
			switch {
			case tc.wantErr == "" && err != nil:
				t.Fatal(err)
			case tc.wantErr != "" && err == nil:
				t.Fatalf("ParsePortable(%q) succeeded", tc.text)
			case tc.wantErr != "" && !strings.Contains(err.Error(), tc.wantErr):
				t.Errorf("error %q does not say %q", err, tc.wantErr)
			}
			if len(got) != tc.want {
				t.Errorf("%d machines, want %d", len(got), tc.want)
			}
		})
	}
}
