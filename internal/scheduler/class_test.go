// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestClassName(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		class Class
		want  string
	}{
		"plain":     {NewClass("x86_64-linux", nil, nil), "x86_64-linux"},
		"features":  {NewClass("x86_64-linux", []string{"nixos-test", "kvm", "kvm"}, nil), "x86_64-linux.kvm.nixos-test"},
		"mandatory": {NewClass("aarch64-darwin", nil, []string{"gpu"}), "aarch64-darwin..gpu"},
		"both":      {NewClass("s", []string{"a", "gpu"}, []string{"gpu"}), "s.a..gpu"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tc.class.Name(); got != tc.want {
				t.Errorf("Name() = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestClassNameIsOpaqueWhereItCannotBeSpelledOut(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("f", 60)
	tests := map[string]struct {
		class      Class
		wantPrefix string
	}{
		"long":         {NewClass("x86_64-linux", []string{long, long + "2"}, nil), "x86_64-linux..."},
		"dot":          {NewClass("x86_64-linux", []string{"gccarch-v8.1"}, nil), "x86_64-linux..."},
		"strange":      {NewClass("x86_64-linux", []string{"a b$"}, nil), "x86_64-linux..."},
		"odd system":   {NewClass("x/y", nil, nil), "class..."},
		"empty system": {NewClass("", nil, nil), "class..."},
	}
	seen := map[string]string{}
	for name, tc := range tests {
		got := tc.class.Name()
		if !strings.HasPrefix(got, tc.wantPrefix) || len(got) > maxNameLength {
			t.Errorf("%s: Name() = %q, want a short name with prefix %q", name, got, tc.wantPrefix)
		}
		if got != tc.class.Name() {
			t.Errorf("%s: the name changes", name)
		}
		if other, dup := seen[got]; dup {
			t.Errorf("%s and %s have the same name %q", name, other, got)
		}
		seen[got] = name
	}
}

func TestServes(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		builder Builder
		class   Class
		want    bool
	}{
		"plain":                   {Builder{Systems: []string{"l", "d"}}, NewClass("d", nil, nil), true},
		"other system":            {Builder{Systems: []string{"l"}}, NewClass("d", nil, nil), false},
		"feature":                 {Builder{Systems: []string{"l"}, Supported: []string{"kvm"}}, NewClass("l", []string{"kvm"}, nil), true},
		"feature missing":         {Builder{Systems: []string{"l"}}, NewClass("l", []string{"kvm"}, nil), false},
		"mandatory counts as one": {Builder{Systems: []string{"l"}, Mandatory: []string{"gpu"}}, Need("l", []string{"gpu"}), true},
		"mandatory not asked for": {Builder{Systems: []string{"l"}, Mandatory: []string{"gpu"}}, NewClass("l", nil, nil), false},
		"mandatory only optional": {Builder{Systems: []string{"l"}, Mandatory: []string{"gpu"}}, NewClass("l", []string{"gpu"}, nil), false},
		"asked for and supported": {Builder{Systems: []string{"l"}, Supported: []string{"gpu"}}, NewClass("l", nil, []string{"gpu"}), true},
		"asked for, not there":    {Builder{Systems: []string{"l"}}, NewClass("l", nil, []string{"gpu"}), false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tc.builder.Serves(tc.class); got != tc.want {
				t.Errorf("Serves = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestLines(t *testing.T) {
	t.Parallel()
	builders := []Builder{
		{ID: "a", Systems: []string{"l"}, Supported: []string{"big", "kvm", "x", "ca-derivations"}, Slots: 5, Down: "unreachable"},
		{ID: "b", Systems: []string{"l", "d"}, Supported: []string{"big", "kvm", "y"}, Slots: 2},
		{ID: "g", Systems: []string{"l"}, Mandatory: []string{"gpu"}, Slots: 1},
		{ID: "c", Systems: []string{"l"}, Mandatory: []string{"ca-derivations"}, Slots: 1},
	}
	type row struct {
		Name  string
		Count int
		Speed int
	}
	var got []row
	for _, line := range Lines(builders, 1000) {
		got = append(got, row{line.Class.Name(), line.Count, line.Speed})
	}
	want := []row{
		{"d", 16, 100}, {"d.big", 16, 99}, {"d.kvm", 16, 99}, {"d.y", 16, 99}, {"d.big.kvm.y", 16, 97},
		{"l", 28, 100}, {"l.big", 28, 99}, {"l.kvm", 28, 99}, {"l.x", 20, 99}, {"l.y", 16, 99},
		{"l.big.kvm", 28, 98}, {"l.big.kvm.x", 20, 97}, {"l.big.kvm.y", 16, 97},
		{"l..gpu", 16, 100},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestLinesDependOnNeitherOrderNorHealth(t *testing.T) {
	t.Parallel()
	a := Builder{ID: "a", Systems: []string{"l", "m"}, Supported: []string{"x", "y"}, Slots: 3}
	b := Builder{ID: "b", Systems: []string{"m", "l"}, Supported: []string{"z", "y"}, Mandatory: []string{"y"}, Slots: 1}
	one := Lines([]Builder{a, b}, 10)
	a.Down, b.Cordon = "unreachable", &Cordon{}
	if diff := cmp.Diff(one, Lines([]Builder{b, a}, 10)); diff != "" {
		t.Errorf("lines (-one +other):\n%s", diff)
	}
}

func TestLinesAreBounded(t *testing.T) {
	t.Parallel()
	sum := func(lines []Line) (n int) {
		for _, line := range lines {
			n += line.Count
		}
		return n
	}
	small := Builder{ID: "small", Systems: []string{"d"}, Slots: 2}
	big := Builder{ID: "big", Systems: []string{"l", "m"}, Slots: 1000}
	lines := Lines([]Builder{small, big}, 100)
	if got := sum(lines); got != 100 {
		t.Errorf("%d lines, want 100: %v", got, lines)
	}
	for _, line := range lines {
		if line.Class.System == "d" && line.Count != minLines {
			t.Errorf("the small class has %d lines, want its %d", line.Count, minLines)
		}
	}
	if got := sum(Lines([]Builder{small, big}, 1)); got != 3 {
		t.Errorf("%d lines, want one for each of 3 classes", got)
	}
	var features []string
	for i := range 200 {
		features = append(features, strings.Repeat("f", 1+i))
	}
	if got := len(Lines([]Builder{{ID: "b", Systems: []string{"l"}, Supported: features, Slots: 1}}, 1000)); got != maxSetsPerGroup {
		t.Errorf("%d classes, want %d", got, maxSetsPerGroup)
	}
	if got := Lines(nil, 10); len(got) != 0 {
		t.Errorf("lines without builders: %v", got)
	}
}
