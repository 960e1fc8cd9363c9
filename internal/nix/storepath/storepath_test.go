// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package storepath_test

import (
	"errors"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/storepath"
)

const hash = "0123456789abcdfghijklmnpqrsvwxyz"

func TestParse(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		dir, path      string
		wantName       string
		wantDerivation bool
	}{
		"plain":              {dir: "/nix/store", path: "/nix/store/" + hash + "-hello-2.12", wantName: "hello-2.12"},
		"derivation":         {dir: "/nix/store", path: "/nix/store/" + hash + "-x.drv", wantName: "x.drv", wantDerivation: true},
		"other store":        {dir: "/nt/store", path: "/nt/store/" + hash + "-x", wantName: "x"},
		"all characters":     {dir: "/nix/store", path: "/nix/store/" + hash + "-aZ09+-._?=", wantName: "aZ09+-._?="},
		"name begins with .": {dir: "/nix/store", path: "/nix/store/" + hash + "-.bashrc", wantName: ".bashrc"},
		"longest name":       {dir: "/nix/store", path: "/nix/store/" + hash + "-" + strings.Repeat("n", 211), wantName: strings.Repeat("n", 211)},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := storepath.Parse(tc.dir, tc.path)
			if err != nil {
				t.Fatal(err)
			}
			if p.String() != tc.path || p.Hash() != hash || p.Name() != tc.wantName || p.Base() != hash+"-"+tc.wantName {
				t.Errorf("String %q, Hash %q, Name %q, Base %q", p, p.Hash(), p.Name(), p.Base())
			}
			if p.IsDerivation() != tc.wantDerivation {
				t.Errorf("IsDerivation = %t", p.IsDerivation())
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	const dir = "/nix/store"
	tests := map[string]struct{ path, want string }{
		"empty":               {"", "is not in the store /nix/store"},
		"directory itself":    {dir, "is not in the store"},
		"another store":       {"/gnu/store/" + hash + "-x", "is not in the store"},
		"nothing behind":      {dir + "/", "has no hash of 32 digits"},
		"short hash":          {dir + "/" + hash[1:] + "-x", "has no hash of 32 digits"},
		"no name":             {dir + "/" + hash, "has no hash of 32 digits"},
		"empty name":          {dir + "/" + hash + "-", "has an empty name"},
		"letter e in hash":    {dir + "/e" + hash[1:] + "-x", "not a base-32 digit"},
		"capital in hash":     {dir + "/A" + hash[1:] + "-x", "not a base-32 digit"},
		"slash in hash":       {dir + "/../" + hash[3:] + "-x", "not a base-32 digit"},
		"path below":          {dir + "/" + hash + "-x/bin/sh", "a character in its name"},
		"newline":             {dir + "/" + hash + "-x\n", "a character in its name"},
		"NUL":                 {dir + "/" + hash + "-x\x00", "a character in its name"},
		"output of path":      {dir + "/" + hash + "-x.drv!out", "a character in its name"},
		"name .":              {dir + "/" + hash + "-.", "starts with '.'"},
		"name ..":             {dir + "/" + hash + "-..", "starts with '.'"},
		"name ..-x":           {dir + "/" + hash + "-..-x", "starts with '.'"},
		"name too long":       {dir + "/" + hash + "-" + strings.Repeat("n", 212), "more than 211 bytes"},
		"parent in front":     {"/nix/../nix/store/" + hash + "-x", "is not in the store"},
		"doubled slash":       {dir + "//" + hash + "-x", "has no hash of 32 digits"},
		"dash in wrong place": {dir + "/" + strings.Repeat("0", 33) + "-x", "has no hash of 32 digits"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := storepath.Parse(dir, tc.path)
			var se *storepath.Error
			if !errors.As(err, &se) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
			if p != (storepath.Path{}) || p.String() != "" || p.Hash() != "" || p.Name() != "" {
				t.Errorf("a path in spite of the error: %v", p)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("/nix/store/" + hash + "-x")
	f.Add("/nix/store/" + hash + "-..")
	f.Add("/nix/store/../x")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := storepath.Parse("/nix/store", s)
		if err != nil {
			return
		}
		if p.String() != s || strings.Count(s, "/") != 3 || strings.ContainsAny(s, "\x00\n !") {
			t.Errorf("Parse(%q) = %q", s, p)
		}
	})
}
