// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// linux returns a builder with two slots.
func linux(id string, change ...func(*Builder)) Builder {
	b := Builder{ID: id, Systems: []string{"x86_64-linux"}, Slots: 2, Speed: 1}
	for _, f := range change {
		f(&b)
	}
	return b
}

func down(b *Builder)                { b.Down, b.Since = "unreachable", noon.Add(-time.Hour) }
func running(n int) func(*Builder)   { return func(b *Builder) { b.Running = n } }
func slots(n int) func(*Builder)     { return func(b *Builder) { b.Slots = n } }
func speed(n int) func(*Builder)     { return func(b *Builder) { b.Speed = n } }
func cordon(c Cordon) func(*Builder) { return func(b *Builder) { b.Cordon = &c } }

func TestPlace(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		builders []Builder
		avoid    []string
		want     string // "" for none
	}{
		"none at all":                {nil, nil, ""},
		"the only one":               {[]Builder{linux("a")}, nil, "a"},
		"not the unhealthy one":      {[]Builder{linux("a", down), linux("b", running(1))}, nil, "b"},
		"not the cordoned one":       {[]Builder{linux("a", cordon(Cordon{})), linux("b", running(1))}, nil, "b"},
		"one whose cordon ended":     {[]Builder{linux("a", cordon(Cordon{Until: noon}))}, nil, "a"},
		"not one whose cordon lasts": {[]Builder{linux("a", cordon(Cordon{Until: noon.Add(1)}))}, nil, ""},
		"not the full one":           {[]Builder{linux("a", running(2)), linux("b", running(1))}, nil, "b"},
		"all full":                   {[]Builder{linux("a", running(2))}, nil, ""},
		"more running than slots":    {[]Builder{linux("a", running(3))}, nil, ""},
		"the less loaded one":        {[]Builder{linux("a", running(1)), linux("b")}, nil, "b"},
		"the larger one":             {[]Builder{linux("a"), linux("b", slots(8))}, nil, "b"},
		"the larger one until it is as loaded": {
			[]Builder{linux("a", slots(1)), linux("b", slots(8), running(6))}, nil, "b"},
		"the faster one":                 {[]Builder{linux("a"), linux("b", speed(3), running(1))}, nil, "b"},
		"another than the one avoided":   {[]Builder{linux("a"), linux("b", running(1))}, []string{"a"}, "b"},
		"waits for another":              {[]Builder{linux("a"), linux("b", running(2))}, []string{"a"}, ""},
		"the one avoided where no other": {[]Builder{linux("a"), linux("b", down)}, []string{"a"}, "a"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := Snapshot{Builders: tc.builders, Now: noon}
			got := ""
			if i, ok := Place(s, Request{Class: NewClass("x86_64-linux", nil, nil), Avoid: tc.avoid}); ok {
				got = tc.builders[i].ID
			}
			if got != tc.want {
				t.Errorf("placed on %q, want %q", got, tc.want)
			}
		})
	}
}

func TestPlaceIsStable(t *testing.T) {
	t.Parallel()
	var builders []Builder
	for i := range 10 {
		builders = append(builders, linux(fmt.Sprint("b", i)))
	}
	place := func(builders []Builder, key string) string {
		i, ok := Place(Snapshot{Builders: builders, Now: noon}, Request{Class: NewClass("x86_64-linux", nil, nil), Key: key})
		if !ok {
			t.Fatal("not placed")
		}
		return builders[i].ID
	}
	reversed := slices.Clone(builders)
	slices.Reverse(reversed)
	used := map[string]int{}
	for i := range 1000 {
		key := fmt.Sprint("/nix/store/", i)
		first := place(builders, key)
		used[first]++
		if got := place(reversed, key); got != first {
			t.Fatalf("%s: %s or %s, depending on the order", key, first, got)
		}
		// Losing another builder moves nothing.
		rest := slices.DeleteFunc(slices.Clone(builders), func(b Builder) bool { return b.ID == "b3" && first != "b3" })
		if got := place(rest, key); got != first {
			t.Fatalf("%s moves from %s to %s", key, first, got)
		}
	}
	for _, b := range builders {
		if n := used[b.ID]; n < 50 || n > 200 {
			t.Errorf("%s got %d of 1000 keys, want about 100", b.ID, n)
		}
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	plain := NewClass("x86_64-linux", nil, nil)
	kvm := func(b *Builder) { b.Supported = []string{"kvm"} }
	tests := map[string]struct {
		builders []Builder
		need     Class
		ahead    []Class
		want     string
	}{
		"busy": {
			[]Builder{linux("a", running(2)), linux("mac-2", down)}, plain, []Class{plain, plain, NewClass("d", nil, nil)},
			"waiting for an x86_64-linux builder: 2 ahead, 2/2 slots busy, mac-2 unreachable since 11:00",
		},
		"feature": {
			[]Builder{linux("a"), linux("k", kvm, down)}, Need("x86_64-linux", []string{"kvm"}), nil,
			"waiting for an x86_64-linux builder with kvm: k unreachable since 11:00",
		},
		"unknown": {
			[]Builder{linux("a")}, Need("riscv64-linux", nil), nil,
			"waiting for a riscv64-linux builder: none is known",
		},
		"cordon": {
			[]Builder{linux("a", cordon(Cordon{Reason: "disk swap", Until: noon.Add(30 * time.Hour)}))}, plain, nil,
			"waiting for an x86_64-linux builder: a cordoned until Mar 5 18:00 (disk swap)",
		},
		"many": {
			[]Builder{linux("a", down), linux("b", down), linux("c", down), linux("d", down), linux("e", down), linux("f", down)}, plain, nil,
			"waiting for an x86_64-linux builder: a unreachable since 11:00, b unreachable since 11:00, " +
				"c unreachable since 11:00, d unreachable since 11:00, 2 more not usable",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ahead []Queued
			for _, c := range tc.ahead {
				ahead = append(ahead, Queued{Class: c, Count: 1})
			}
			got := Explain(Snapshot{Builders: tc.builders, Now: noon}, tc.need, ahead, noon).String()
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func BenchmarkPlace(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var s Snapshot
			for i := range n {
				s.Builders = append(s.Builders, linux(fmt.Sprint("b", i), running(i%3)))
			}
			r := Request{Class: NewClass("x86_64-linux", nil, nil), Key: "key"}
			for b.Loop() {
				if _, ok := Place(s, r); !ok {
					b.Fatal("not placed")
				}
			}
		})
	}
}

func BenchmarkLines(b *testing.B) {
	var builders []Builder
	for i := range 1000 {
		builders = append(builders, Builder{
			ID: fmt.Sprint("b", i), Systems: []string{"x86_64-linux", "i686-linux"}, Slots: 8,
			Supported: []string{"kvm", "big-parallel", fmt.Sprint("f", i%10)},
		})
	}
	for b.Loop() {
		Lines(builders, 512)
	}
}
