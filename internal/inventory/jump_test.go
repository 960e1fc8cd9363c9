// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package inventory

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// behind is a small endpoint behind a jump host.
func behind(change func(*Jump)) Endpoint {
	e := small("site", "a")
	e.Jump = &Jump{
		Host: "jump.example", Port: 2222, User: "hop", HostKeys: []string{keyA, keyB},
		CertificateAuthorities: []string{keyA}, Credentials: []string{"jump", "a-older"},
	}
	change(e.Jump)
	return e
}

func TestJumpRoundTrip(t *testing.T) {
	t.Parallel()
	shuffled := behind(func(j *Jump) { j.HostKeys = []string{keyB, keyA, keyB} })
	text, err := Encode(Document{Builders: []Endpoint{shuffled, full("mac", "a"), full("linux", "a")}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	want := Document{SchemaVersion: 1, Builders: []Endpoint{full("linux", "a"), full("mac", "a"), behind(func(*Jump) {})}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Decode(Encode(d)) (-want +got):\n%s", diff)
	}
	if len(shuffled.Jump.HostKeys) != 3 {
		t.Error("Encode changed its argument")
	}
}

// A reader of version 1 from before there were jump hosts does not learn of builders
// behind one.
func TestJumpBuildersAreNotForOlderReaders(t *testing.T) {
	t.Parallel()
	text, err := Encode(Document{Builders: []Endpoint{behind(func(*Jump) {}), small("mac", "a")}})
	if err != nil {
		t.Fatal(err)
	}
	var older struct {
		SchemaVersion int
		Builders      []struct{ Builder string }
	}
	if err := json.Unmarshal(text, &older); err != nil {
		t.Fatal(err)
	}
	if older.SchemaVersion != 1 || len(older.Builders) != 1 || older.Builders[0].Builder != "mac" {
		t.Errorf("it reads %+v", older)
	}
	without, err := Encode(Document{Builders: []Endpoint{small("mac", "a")}})
	if err != nil || strings.Contains(string(without), "jump") {
		t.Errorf("without jump hosts: %s, %v", without, err)
	}
}

func TestBadJump(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*Jump)
		want   string
	}{
		"no host":             {func(j *Jump) { j.Host = "" }, "jump host is missing"},
		"host as an option":   {func(j *Jump) { j.Host = "-oProxyCommand=x" }, "is not a name"},
		"no user":             {func(j *Jump) { j.User = "" }, "user of the jump host is missing"},
		"no port":             {func(j *Jump) { j.Port = 0 }, "port of the jump host is 0"},
		"port too large":      {func(j *Jump) { j.Port = 1 << 16 }, "not between 1 and 65535"},
		"no key":              {func(j *Jump) { j.HostKeys, j.CertificateAuthorities = nil, nil }, "the jump host has no host key"},
		"no credential":       {func(j *Jump) { j.Credentials = nil }, "the jump host has no credential"},
		"credential up there": {func(j *Jump) { j.Credentials = []string{"../x"} }, "is not a name"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := behind(tc.change)
			if _, err := Encode(Document{Builders: []Endpoint{bad}}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Encode: %v, want %q", err, tc.want)
			}
			line, err := json.Marshal(bad)
			if err != nil {
				t.Fatal(err)
			}
			for _, list := range []string{"builders", "jumpBuilders"} {
				if _, err := Decode([]byte(`{"schemaVersion":1,"` + list + `":[` + string(line) + `]}`)); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("Decode of %s: %v, want %q", list, err, tc.want)
				}
			}
		})
	}
}

func TestJumpBuilderWithoutJump(t *testing.T) {
	t.Parallel()
	line, err := json.Marshal(small("site", "a"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Decode([]byte(`{"schemaVersion":1,"builders":[],"jumpBuilders":[` + string(line) + `]}`))
	if err == nil || !strings.Contains(err.Error(), `builder "site/a" is behind a jump host that is missing`) {
		t.Errorf("got %v", err)
	}
}
