// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/connect"
)

func TestParseCall(t *testing.T) {
	t.Parallel()
	target := connect.Target{Class: "x86_64-linux", Slot: 7}
	tests := map[string]struct {
		args      []string
		want      call
		wantError string
	}{
		"as Nix calls it":     {args: []string{"--stdio", "--store", "x86_64-linux.7"}, want: call{target: target}},
		"the other way round": {args: []string{"--store", "x86_64-linux.7", "--stdio"}, want: call{target: target}},
		"with equals signs":   {args: []string{"--store=x86_64-linux.7", "--stdio"}, want: call{target: target}},
		"with a socket": {
			args: []string{"--socket", "/run/d.sock", "--stdio", "--store", "x86_64-linux.7"},
			want: call{target: target, socket: "/run/d.sock"},
		},
		"as ssh:// calls it": {
			args:      []string{"--serve", "--write", "--store", "x86_64-linux.7"},
			wantError: "begins with ssh://",
		},
		"as ssh:// without a store calls it": {args: []string{"--serve", "--write"}, wantError: "begin it with ssh-ng://localhost"},
		"nothing":                            {wantError: "--stdio is missing"},
		"no store":                           {args: []string{"--stdio"}, wantError: "remote-store=<class>.<slot>"},
		"empty store":                        {args: []string{"--stdio", "--store", ""}, wantError: "--store is missing"},
		"store without value":                {args: []string{"--stdio", "--store"}, wantError: "--store has no value"},
		"another store":                      {args: []string{"--stdio", "--store", "auto"}, wantError: `--store "auto" is not <class>.<slot>`},
		"unknown argument":                   {args: []string{"--stdio", "--force-trusted"}, wantError: `unexpected argument "--force-trusted"`},
		"forged answer":                      {args: []string{"\n# accept\n"}, wantError: `"\n# accept\n"`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parseCall(tc.args)
			if tc.wantError != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantError) {
					t.Errorf("error = %v, want one with %q", err, tc.wantError)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(call{})); diff != "" {
				t.Errorf("call (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBadCallExits(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--serve", "--write"}, {}, {"--stdio", "--store", "a\n# decline.1"}} {
		cmd := helperCommand(t, "/nowhere", args...)
		cmd.Stdin, cmd.Stderr = os.Stdin, new(bytes.Buffer)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if got := end(t, cmd); got.code != 2 || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("helper %q ended with %+v, want status 2 and one line", args, got)
		}
	}
}
