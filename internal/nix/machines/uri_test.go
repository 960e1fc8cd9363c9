// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseStoreURI(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text string
		want StoreURI
		// wantText is what String gives; the same text where it is empty.
		wantText string
	}{
		"scheme, user and host": {
			text: "ssh-ng://nix@mac-2.example.org",
			want: StoreURI{Scheme: "ssh-ng", User: "nix", Host: "mac-2.example.org"},
		},
		"a name alone is reached by ssh": {
			text:     "mac-2",
			want:     StoreURI{Scheme: "ssh", Host: "mac-2"},
			wantText: "ssh://mac-2",
		},
		"a name with user and parameter is reached by ssh": {
			text:     "root@mac-2?compress=true",
			want:     StoreURI{Scheme: "ssh", User: "root", Host: "mac-2", Params: map[string]string{"compress": "true"}},
			wantText: "ssh://root@mac-2?compress=true",
		},
		"port in the authority": {
			text: "ssh-ng://mac-2:2222",
			want: StoreURI{Scheme: "ssh-ng", Host: "mac-2", Port: 2222},
		},
		"port as a parameter, as Lix reads it": {
			text: "ssh-ng://mac-2?port=2222",
			want: StoreURI{Scheme: "ssh-ng", Host: "mac-2", Params: map[string]string{"port": "2222"}},
		},
		"IPv6 in brackets with a port": {
			text: "ssh://root@[fe80::1%eth0]:22",
			want: StoreURI{Scheme: "ssh", User: "root", Host: "fe80::1%eth0", Port: 22},
		},
		"IPv6 without brackets": {
			text:     "ssh://root@2001:db8::1",
			want:     StoreURI{Scheme: "ssh", User: "root", Host: "2001:db8::1"},
			wantText: "ssh://root@[2001:db8::1]",
		},
		"values are percent-decoded and a plus is a plus": {
			text: "ssh-ng://localhost?remote-program=/run/a%20b%2Bc+d&remote-store=x.0",
			want: StoreURI{Scheme: "ssh-ng", Host: "localhost", Params: map[string]string{
				"remote-program": "/run/a b+c+d", "remote-store": "x.0",
			}},
			wantText: "ssh-ng://localhost?remote-program=/run/a%20b%2Bc%2Bd&remote-store=x.0",
		},
		"parameters come out sorted": {
			text:     "ssh-ng://h?z=1&a=2",
			want:     StoreURI{Scheme: "ssh-ng", Host: "h", Params: map[string]string{"a": "2", "z": "1"}},
			wantText: "ssh-ng://h?a=2&z=1",
		},
		"the first of equal parameters counts, pieces without a value do not": {
			text:     "ssh-ng://h?a=1&a=2&lonely&&=x",
			want:     StoreURI{Scheme: "ssh-ng", Host: "h", Params: map[string]string{"a": "1"}},
			wantText: "ssh-ng://h?a=1",
		},
		"a question mark in a value": {
			text:     "ssh-ng://h?remote-store=local?root=/x",
			want:     StoreURI{Scheme: "ssh-ng", Host: "h", Params: map[string]string{"remote-store": "local?root=/x"}},
			wantText: "ssh-ng://h?remote-store=local%3Froot%3D/x",
		},
		"unix socket": {
			text: "unix:///run/nix/socket",
			want: StoreURI{Scheme: "unix", Path: "/run/nix/socket"},
		},
		"words that are no host": {text: "auto", want: StoreURI{Path: "auto"}},
		"word with a parameter":  {text: "local?root=/x", want: StoreURI{Path: "local", Params: map[string]string{"root": "/x"}}, wantText: "local?root=/x"},
		"directory":              {text: "/var/chroot", want: StoreURI{Path: "/var/chroot"}},
		"directory without a leading slash": {
			text: "./chroot", want: StoreURI{Path: "./chroot"},
		},
		"parameters alone": {text: "?root=/x", want: StoreURI{Params: map[string]string{"root": "/x"}}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseStoreURI(tc.text)
			if err != nil {
				t.Fatalf("ParseStoreURI(%q): %v", tc.text, err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("ParseStoreURI(%q) (-want +got):\n%s", tc.text, diff)
			}
			wantText := tc.wantText
			if wantText == "" {
				wantText = tc.text
			}
			if text := got.String(); text != wantText {
				t.Errorf("String() = %q, want %q", text, wantText)
			}
			again, err := ParseStoreURI(got.String())
			if err != nil {
				t.Fatalf("ParseStoreURI(%q) of own text: %v", got, err)
			}
			if diff := cmp.Diff(got, again); diff != "" {
				t.Errorf("reading the text again (-first +second):\n%s", diff)
			}
		})
	}
}

func TestParseStoreURIErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ text, want string }{
		"no host":            {"ssh://", "a ssh:// URI must name a host"},
		"option as host":     {"ssh-ng://-oProxyCommand=x", "neither the user nor the host may begin with a dash"},
		"option as user":     {"ssh-ng://-l@h", "neither the user nor the host may begin with a dash"},
		"port of letters":    {"ssh-ng://h:ssh", `"ssh" is not a port number between 1 and 65535`},
		"port zero":          {"ssh-ng://h:0", `"0" is not a port number between 1 and 65535`},
		"port too large":     {"ssh-ng://h?port=65536", `"65536" is not a port number between 1 and 65535`},
		"open bracket":       {"ssh-ng://[::1", `"[::1" is not an IPv6 address in brackets`},
		"name in brackets":   {"[machines.mac]", `"[machines.mac]" is not an IPv6 address in brackets`},
		"text after bracket": {"ssh://[::1]22", `"[::1]22" is not an IPv6 address in brackets`},
		"cut escape":         {"ssh-ng://h?a=%2", `parameter "a": "%2" is not a percent escape`},
		"wrong escape":       {"ssh-ng://h?a=%zz", `parameter "a": "%zz" is not a percent escape`},
		"signed escape":      {"ssh-ng://h?a=%+1", `parameter "a": "%+1" is not a percent escape`},
		"scheme of blanks":   {"my ssh://h", `"my ssh" is not the scheme of a URI`},
		"quoted host":        {`ssh-ng://"h"`, `"@\"h\"" is not the name of a user and a host`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseStoreURI(tc.text)
			if err == nil {
				t.Fatalf("ParseStoreURI(%q) succeeded", tc.text)
			}
			if err.Error() != tc.want {
				t.Errorf("error = %q, want %q", err, tc.want)
			}
		})
	}
}

func TestStoreURIAccessors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text                       string
		wantPort                   int
		wantSSH                    bool
		wantProgram, wantRemoteDir string
	}{
		"default port":         {text: "ssh-ng://h", wantPort: 22, wantSSH: true},
		"authority's port":     {text: "ssh://h:2222", wantPort: 2222, wantSSH: true},
		"parameter's port":     {text: "ssh://h?port=2223", wantPort: 2223, wantSSH: true},
		"authority goes first": {text: "ssh://h:2222?port=2223", wantPort: 2222, wantSSH: true},
		"not ssh":              {text: "unix:///x", wantPort: 22},
		"program and store": {
			text:     "ssh-ng://h?remote-program=/opt/nix%20x/nix-daemon&remote-store=/mnt",
			wantPort: 22, wantSSH: true, wantProgram: "/opt/nix x/nix-daemon", wantRemoteDir: "/mnt",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uri, err := ParseStoreURI(tc.text)
			if err != nil {
				t.Fatal(err)
			}
			if got := uri.SSHPort(); got != tc.wantPort {
				t.Errorf("SSHPort() = %d, want %d", got, tc.wantPort)
			}
			if got := uri.SSH(); got != tc.wantSSH {
				t.Errorf("SSH() = %v, want %v", got, tc.wantSSH)
			}
			if got := uri.RemoteProgram(); got != tc.wantProgram {
				t.Errorf("RemoteProgram() = %q, want %q", got, tc.wantProgram)
			}
			if got := uri.RemoteStore(); got != tc.wantRemoteDir {
				t.Errorf("RemoteStore() = %q, want %q", got, tc.wantRemoteDir)
			}
		})
	}
}
