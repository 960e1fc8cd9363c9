// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDebianMirror(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		files map[string]string
		want  string // empty: an error
	}{
		"one line": {
			files: map[string]string{"sources.list": "# main\ndeb http://mirror.example/debian bookworm main # here\n"},
			want:  "http://mirror.example/debian",
		},
		"one line with options": {
			files: map[string]string{"sources.list": "deb [arch=amd64 signed-by=/k] http://mirror.example/debian/ bookworm contrib main\n"},
			want:  "http://mirror.example/debian/",
		},
		"stanzas": {
			files: map[string]string{"sources.list.d/debian.sources": "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm\n bookworm-updates\nComponents: main\n"},
			want:  "http://mirror.example/debian",
		},
		"others come first": {
			files: map[string]string{
				"sources.list.d/a.list":    "deb http://vendor.example/apt stable main\n",
				"sources.list.d/b.sources": "Types: deb\nURIs: http://mirror.example/debian-security\nSuites: x-security\nComponents: main\n\nTypes: deb-src deb\nURIs: http://mirror.example/debian\nSuites: x\nComponents: main\n",
			},
			want: "http://mirror.example/debian",
		},
		"disabled, sources only, or without main": {
			files: map[string]string{
				"sources.list":             "deb-src http://a.example/debian x main\ndeb http://b.example/debian x contrib\n",
				"sources.list.d/b.sources": "Enabled: no\nTypes: deb\nURIs: http://c.example/debian\nSuites: x\nComponents: main\n",
			},
		},
		"nothing": {},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for path, text := range tc.files {
				full := filepath.Join(dir, path)
				if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := debianMirror(dir)
			if (err != nil) != (tc.want == "") {
				t.Fatalf("error: %v", err)
			}
			if got != tc.want {
				t.Errorf("mirror %q, want %q", got, tc.want)
			}
		})
	}
}

func TestParseStatus(t *testing.T) {
	t.Parallel()
	got := parseStatus(4242, "Name:\tsh\nState:\tZ (zombie)\nPPid:\t17\nUid:\t3001\t3001\t3001\t3001\nNSpid:\t4242\t5\n")
	want := process{pid: 4242, parent: 17, inner: 5, user: 3001, zombie: true}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(process{})); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestDescendants(t *testing.T) {
	t.Parallel()
	all := []process{
		{pid: 100, parent: 1, inner: 1},
		{pid: 103, parent: 102, inner: 4},
		{pid: 101, parent: 100, inner: 2},
		{pid: 102, parent: 101, inner: 3},
		{pid: 104, parent: 100, inner: 5},
	}
	var got []int
	for _, p := range descendants(all, 2) {
		got = append(got, p.inner)
	}
	if diff := cmp.Diff([]int{2, 3, 4}, got); diff != "" {
		t.Errorf("descendants of 2 (-want +got):\n%s", diff)
	}
}
