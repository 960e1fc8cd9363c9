// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// testKey is the line of an Ed25519 host key of zeros.
const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

var ignoreOrigin = cmpopts.IgnoreFields(Machine{}, "Origin")

// host is a machine with all columns but the first at their default.
func host(name string) Machine {
	return Machine{URI: StoreURI{Scheme: "ssh-ng", Host: name}, MaxJobs: 1, SpeedFactor: 1}
}

func TestParse(t *testing.T) {
	t.Parallel()
	encoded := base64.StdEncoding.EncodeToString([]byte(testKey + " root@mac\n"))
	tests := map[string]struct {
		text string
		want []Machine
	}{
		"empty":            {text: ""},
		"only a comment":   {text: "# nothing here; not even this\n"},
		"indented comment": {text: "  \t# builders are away\n   \n\r\n"},
		"all columns": {
			text: "ssh-ng://nix@mac aarch64-darwin,x86_64-darwin /etc/nix/key 8 2 big-parallel,benchmark benchmark " + encoded + "\n",
			want: []Machine{{
				URI:               StoreURI{Scheme: "ssh-ng", User: "nix", Host: "mac"},
				Systems:           []string{"aarch64-darwin", "x86_64-darwin"},
				Identity:          "/etc/nix/key",
				MaxJobs:           8,
				SpeedFactor:       2,
				SupportedFeatures: []string{"big-parallel", "benchmark"},
				MandatoryFeatures: []string{"benchmark"},
				HostKey:           testKey + " root@mac",
			}},
		},
		"missing columns": {text: "ssh-ng://a", want: []Machine{host("a")}},
		"dashes":          {text: "ssh-ng://a - - - - - - -", want: []Machine{host("a")}},
		"more columns than there are": {
			text: "ssh-ng://a - - - - - - - and more", want: []Machine{host("a")},
		},
		"blanks around and between": {text: " \tssh-ng://a \t -\t\r\n", want: []Machine{host("a")}},
		"comment behind a machine":  {text: "ssh-ng://a # the old one; ssh-ng://b", want: []Machine{host("a")}},
		"no newline at the end":     {text: "ssh-ng://a\nssh-ng://b", want: []Machine{host("a"), host("b")}},
		"semicolons": {
			text: "ssh-ng://a; ssh-ng://b ;;ssh-ng://c;",
			want: []Machine{host("a"), host("b"), host("c")},
		},
		"a name without a scheme": {
			text: "mac x86_64-linux",
			want: []Machine{{
				URI: StoreURI{Scheme: "ssh", Host: "mac"}, Systems: []string{"x86_64-linux"}, MaxJobs: 1, SpeedFactor: 1,
			}},
		},
		"empty elements of a list": {
			text: "ssh-ng://a ,x86_64-linux,, - 1 1 , kvm,",
			want: []Machine{{
				URI: StoreURI{Scheme: "ssh-ng", Host: "a"}, Systems: []string{"x86_64-linux"},
				MaxJobs: 1, SpeedFactor: 1, MandatoryFeatures: []string{"kvm"},
			}},
		},
		"fractional speed, as Nix from 2.20 reads it": {
			text: "ssh-ng://a - - 4 0.5",
			want: []Machine{{URI: StoreURI{Scheme: "ssh-ng", Host: "a"}, MaxJobs: 4, SpeedFactor: 0.5}},
		},
		"speed 0 means 1 and no jobs mean none": {
			text: "ssh-ng://a - - 0 0",
			want: []Machine{{URI: StoreURI{Scheme: "ssh-ng", Host: "a"}, MaxJobs: 0, SpeedFactor: 1}},
		},
		"host key without padding": {
			text: "ssh-ng://a - - - - - - YWI",
			want: []Machine{{URI: StoreURI{Scheme: "ssh-ng", Host: "a"}, MaxJobs: 1, SpeedFactor: 1, HostKey: "ab"}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse("machines", []byte(tc.text), ParseOptions{})
			if err != nil {
				t.Fatalf("Parse(%q): %v", tc.text, err)
			}
			if diff := cmp.Diff(tc.want, got, ignoreOrigin); diff != "" {
				t.Errorf("Parse(%q) (-want +got):\n%s", tc.text, diff)
			}
		})
	}
}

// Each of these texts stops all builds of a Nix that reads it, with words
// that name neither line nor remedy; ours must.
func TestParseErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ text, want string }{
		// Nix: failed to convert column #3 in a row: '…' to 'unsigned int'
		"jobs in words": {
			text: "# two machines\nssh-ng://a\nssh-ng://b x86_64-linux /key eight\n",
			want: `machines:3:30: column 4: "eight" is not a number of jobs ` +
				`(how many builds the machine runs at once, a whole number such as 4)`,
		},
		"negative jobs": {
			text: "ssh-ng://a - - -1",
			want: `machines:1:16: column 4: "-1" is not a number of jobs ` +
				`(how many builds the machine runs at once, a whole number such as 4)`,
		},
		"too many jobs": {
			text: "ssh-ng://a - - 4294967296",
			want: `machines:1:16: column 4: "4294967296" is not a number of jobs ` +
				`(how many builds the machine runs at once, a whole number such as 4)`,
		},
		// Nix: speed factor must be >= 0
		"negative speed": {
			text: "ssh-ng://a - - 1 -2",
			want: `machines:1:18: column 5: "-2" is not a speed factor (a positive number such as 1 or 2)`,
		},
		"speed that is no decimal number": {
			text: "ssh-ng://a - - 1 0x1p3",
			want: `machines:1:18: column 5: "0x1p3" is not a speed factor (a positive number such as 1 or 2)`,
		},
		"speed that is not finite": {
			text: "ssh-ng://a - - 1 1e999",
			want: `machines:1:18: column 5: "1e999" is not a speed factor (a positive number such as 1 or 2)`,
		},
		// Nix: a column #7 in a row: '…' is not valid base64 string
		"host key that is not encoded": {
			text: "ssh-ng://a - - - - - - ssh-ed25519 AAAA",
			want: `machines:1:24: column 8: the host key is not valid base64: illegal base64 data at input byte 3 ` +
				`(the column takes the output of "base64 -w0" on the builder's whole ssh_host_…_key.pub)`,
		},
		"second machine of a line": {
			text: "\nssh-ng://a - - 1;  ssh-ng://b - - x",
			want: `machines:2:35: column 4: "x" is not a number of jobs ` +
				`(how many builds the machine runs at once, a whole number such as 4)`,
		},
		"no URI": {
			text: "- x86_64-linux",
			want: `machines:1:1: column 1: the store URI cannot be left out (such as ssh-ng://user@host)`,
		},
		"wrong port": {
			text: " ssh-ng://a:70000",
			want: `machines:1:2: column 1: "ssh-ng://a:70000" is not a store URI: "70000" is not a port number ` +
				`between 1 and 65535 (such as ssh-ng://user@host)`,
		},
		"the TOML form of Lix": {
			text: "version = 1\n[machines.mac]\nuri = \"ssh-ng://mac\"\n",
			want: `machines:1:9: column 2: "=" is not a list of systems ` +
				`(the TOML form that newer Lix reads is not supported; write one line per machine)`,
		},
		"include where there is none": {
			text: "@/etc/nix/more",
			want: `machines:1:1: other files are not included here`,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse("machines", []byte(tc.text), ParseOptions{})
			if err == nil {
				t.Fatalf("Parse(%q) succeeded: %v", tc.text, got)
			}
			if got != nil {
				t.Errorf("machines besides an error: %v", got)
			}
			if err.Error() != tc.want {
				t.Errorf("error:\n got %s\nwant %s", err, tc.want)
			}
			var parseError *ParseError
			if !errors.As(err, &parseError) {
				t.Fatalf("error is a %T, want *ParseError", err)
			}
		})
	}
}

// files includes from a map, as a directory would.
func files(content map[string]string) ParseOptions {
	return ParseOptions{Include: func(path string) ([]byte, error) {
		text, ok := content[path]
		switch {
		case !ok:
			return nil, fmt.Errorf("open %s: %w", path, fs.ErrNotExist)
		case text == "forbidden":
			return nil, fmt.Errorf("open %s: %w", path, fs.ErrPermission)
		}
		return []byte(text), nil
	}}
}

func TestParseInclude(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text string
		want []string // hosts, in order
	}{
		"in its place":          {"ssh-ng://a\n@/b\nssh-ng://c", []string{"a", "b", "c"}},
		"indented, with blanks": {"  @ /b \nssh-ng://c", []string{"b", "c"}},
		"after a semicolon":     {"ssh-ng://a;@/b", []string{"a", "b"}},
		"nested":                {"@/nested", []string{"n", "b"}},
		"missing is empty":      {"@/nowhere\nssh-ng://a", []string{"a"}},
		"twice is no cycle":     {"@/b\n@/b", []string{"b", "b"}},
		"path with a blank":     {"@/with blank", []string{"w"}},
	}
	opts := files(map[string]string{
		"/b": "ssh-ng://b\n", "/nested": "ssh-ng://n\n@/b", "/with blank": "ssh-ng://w",
	})
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse("machines", []byte(tc.text), opts)
			if err != nil {
				t.Fatal(err)
			}
			var hosts []string
			for _, machine := range got {
				hosts = append(hosts, machine.URI.Host)
			}
			if diff := cmp.Diff(tc.want, hosts); diff != "" {
				t.Errorf("hosts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseIncludeErrors(t *testing.T) {
	t.Parallel()
	content := map[string]string{
		"/self": "@/self", "/a": "\n@/b", "/b": "@/a", "/bad": "ssh-ng://x\nssh-ng://y - - z",
		"/secret": "forbidden", "/empty": "", "/big": strings.Repeat("#", MaxSize),
	}
	for i := range MaxIncludeDepth + 1 {
		content[fmt.Sprintf("/deep%d", i)] = fmt.Sprintf("@/deep%d", i+1)
	}
	opts := files(content)
	tests := map[string]struct{ text, want string }{
		"itself":      {"@/self", "/self:1:1: /self includes itself by way of machines, /self"},
		"each other":  {"@/a", "/b:1:1: /a includes itself by way of machines, /a, /b"},
		"no path":     {"ssh-ng://a\n @ ", "machines:2:2: @ is not followed by the path of a file"},
		"unreadable":  {"@/secret", "machines:1:1: read included file /secret: open /secret: permission denied"},
		"bad content": {"@/bad", `/bad:2:16: column 4: "z" is not a number of jobs (how many builds the machine runs at once, a whole number such as 4)`},
		"deep":        {"@/deep0", "/deep15:1:1: files are included more than 16 deep"},
		"many":        {strings.Repeat("@/empty\n", MaxIncludes+1), "machines:257:1: more than 256 files are included"},
		"large":       {"@/big\n", "/big:1:1: the machines file and what it includes are larger than 1048576 bytes"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse("machines", []byte(tc.text), opts)
			if err == nil {
				t.Fatal("Parse succeeded")
			}
			if err.Error() != tc.want {
				t.Errorf("error:\n got %s\nwant %s", err, tc.want)
			}
		})
	}
	_, err := Parse("machines", []byte("@/secret"), opts)
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("error %v does not wrap its cause", err)
	}
}

func TestParseOrigin(t *testing.T) {
	t.Parallel()
	opts := files(map[string]string{"/more": "\n  ssh-ng://c"})
	got, err := Parse("machines", []byte("ssh-ng://a; ssh-ng://b\n@/more"), opts)
	if err != nil {
		t.Fatal(err)
	}
	var origins []string
	for _, machine := range got {
		origins = append(origins, machine.Origin.String())
	}
	if diff := cmp.Diff([]string{"machines:1:1", "machines:1:13", "/more:2:3"}, origins); diff != "" {
		t.Errorf("origins (-want +got):\n%s", diff)
	}
}
