// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"cmp"
	"fmt"
	"math/rand/v2"
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
		present  map[string]int
		want     string // "" for none
		prospect string // "" for the same
	}{
		"none at all":    {},
		"the only one":   {builders: []Builder{linux("a")}, want: "a"},
		"without a slot": {builders: []Builder{linux("a", slots(0))}},
		"not the unhealthy one": {
			builders: []Builder{linux("a", down), linux("b", running(1))}, want: "b"},
		"not the unhealthy one that has the inputs": {
			builders: []Builder{linux("a", down), linux("b", running(1))}, present: map[string]int{"a": 9}, want: "b"},
		"not the cordoned one": {
			builders: []Builder{linux("a", cordon(Cordon{})), linux("b", running(1))}, want: "b"},
		"not the cordoned one that has the inputs": {
			builders: []Builder{linux("a", cordon(Cordon{})), linux("b", running(1))}, present: map[string]int{"a": 9}, want: "b"},
		"one whose cordon ended":     {builders: []Builder{linux("a", cordon(Cordon{Until: noon}))}, want: "a"},
		"not one whose cordon lasts": {builders: []Builder{linux("a", cordon(Cordon{Until: noon.Add(1)}))}},
		"not the full one": {
			builders: []Builder{linux("a", running(2)), linux("b", running(1))}, want: "b"},
		"not the full one that has the inputs": {
			builders: []Builder{linux("a", running(2)), linux("b", running(1))},
			present:  map[string]int{"a": 9}, want: "b", prospect: "a"},
		"all full":                {builders: []Builder{linux("a", running(2))}, prospect: "a"},
		"more running than slots": {builders: []Builder{linux("a", running(3))}, prospect: "a"},
		"the one with more inputs, whatever its load": {
			builders: []Builder{linux("a", running(1)), linux("b", slots(64), speed(100))},
			present:  map[string]int{"a": 3, "b": 2}, want: "a"},
		"the less loaded of those with the same inputs": {
			builders: []Builder{linux("a", running(1)), linux("b"), linux("c", slots(8))},
			present:  map[string]int{"a": 3, "b": 3}, want: "b"},
		"the less loaded one": {builders: []Builder{linux("a", running(1)), linux("b")}, want: "b"},
		"the larger one":      {builders: []Builder{linux("a"), linux("b", slots(8))}, want: "b"},
		"the larger one until it is as loaded": {
			builders: []Builder{linux("a", slots(1)), linux("b", slots(8), running(6))}, want: "b"},
		"the faster one":               {builders: []Builder{linux("a"), linux("b", speed(3), running(1))}, want: "b"},
		"another than the one avoided": {builders: []Builder{linux("a"), linux("b", running(1))}, avoid: []string{"a"}, want: "b"},
		"another than the one avoided that has the inputs": {
			builders: []Builder{linux("a"), linux("b", running(1))}, avoid: []string{"a"}, present: map[string]int{"a": 9}, want: "b"},
		"waits for another": {
			builders: []Builder{linux("a"), linux("b", running(2))}, avoid: []string{"a"}, prospect: "b"},
		"the one avoided where no other": {builders: []Builder{linux("a"), linux("b", down)}, avoid: []string{"a"}, want: "a"},
		"the one avoided where the other has no slots": {
			builders: []Builder{linux("a"), linux("b", slots(0))}, avoid: []string{"a"}, want: "a"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := Snapshot{Builders: tc.builders, Now: noon}
			r := Request{Class: NewClass("x86_64-linux", nil, nil), Avoid: tc.avoid, Present: tc.present}
			named := func(i int, ok bool) string {
				if !ok {
					return ""
				}
				return tc.builders[i].ID
			}
			if got := named(Place(s, r)); got != tc.want {
				t.Errorf("placed on %q, want %q", got, tc.want)
			}
			want := cmp.Or(tc.prospect, tc.want)
			if got := named(Prospect(s, r)); got != want {
				t.Errorf("prospect %q, want %q", got, want)
			}
		})
	}
}

// randomBuilders returns builders that often are equal in some respects.
func randomBuilders(random *rand.Rand, n int) []Builder {
	builders := make([]Builder, n)
	for i := range builders {
		b := linux(fmt.Sprint("b", i), slots(random.IntN(4)), speed(random.IntN(3)), running(random.IntN(3)))
		if random.IntN(4) == 0 {
			down(&b)
		}
		if random.IntN(4) == 0 {
			b.Cordon = &Cordon{Until: noon.Add(time.Duration(random.IntN(3)-1) * time.Hour)}
		}
		if random.IntN(3) == 0 {
			b.Supported = []string{"kvm"}
		}
		if random.IntN(5) == 0 {
			b.Mandatory = []string{"gpu"}
		}
		if random.IntN(6) == 0 {
			b.Systems = []string{"aarch64-darwin"}
		}
		builders[i] = b
	}
	return builders
}

func randomRequest(random *rand.Rand, builders int) Request {
	needs := []Class{NewClass("x86_64-linux", nil, nil), Need("x86_64-linux", []string{"kvm"}),
		Need("x86_64-linux", []string{"gpu"}), NewClass("aarch64-darwin", nil, nil)}
	r := Request{Class: needs[random.IntN(len(needs))], Key: fmt.Sprint(random.IntN(5)), Present: map[string]int{}}
	for i := range builders {
		if random.IntN(5) == 0 {
			r.Avoid = append(r.Avoid, fmt.Sprint("b", i))
		}
		if random.IntN(3) == 0 {
			r.Present[fmt.Sprint("b", i)] = random.IntN(3)
		}
	}
	return r
}

// TestPlaceFollowsTheWrittenOrder holds Place against its description, one
// sentence after the other.
func TestPlaceFollowsTheWrittenOrder(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 11))
	for range 20000 {
		s := Snapshot{Builders: randomBuilders(random, 1+random.IntN(8)), Now: noon}
		r := randomRequest(random, len(s.Builders))
		if random.IntN(4) == 0 {
			r.Exclude = []string{fmt.Sprint("b", random.IntN(len(s.Builders)))}
		}
		keep := func(from []Builder, what func(Builder) bool) []Builder {
			return slices.DeleteFunc(slices.Clone(from), func(b Builder) bool { return !what(b) })
		}
		best := func(from []Builder, order func(a, b Builder) int) []Builder {
			if len(from) == 0 {
				return nil
			}
			top := slices.MinFunc(from, order)
			return keep(from, func(b Builder) bool { return order(b, top) == 0 })
		}
		left := keep(s.Builders, func(b Builder) bool { return b.Serves(r.Class) && b.Down == "" })
		left = keep(left, func(b Builder) bool { return !b.Cordoned(noon) && b.Slots > 0 })
		left = keep(left, func(b Builder) bool { return !slices.Contains(r.Exclude, b.ID) })
		if others := keep(left, func(b Builder) bool { return !slices.Contains(r.Avoid, b.ID) }); len(others) > 0 {
			left = others
		}
		left = keep(left, func(b Builder) bool { return b.Running < b.Slots })
		left = best(left, func(a, b Builder) int { return r.Present[b.ID] - r.Present[a.ID] })
		left = best(left, func(a, b Builder) int {
			return (a.Running+1)*b.Slots*max(b.Speed, 1) - (b.Running+1)*a.Slots*max(a.Speed, 1)
		})
		i, ok := Place(s, r)
		if ok != (len(left) > 0) {
			t.Fatalf("placed: %v, candidates: %+v, of %+v for %+v", ok, left, s.Builders, r)
		}
		if !ok {
			continue
		}
		got := s.Builders[i].ID
		if !slices.ContainsFunc(left, func(b Builder) bool { return b.ID == got }) {
			t.Fatalf("placed on %s, want one of %+v, of %+v for %+v", got, left, s.Builders, r)
		}
		// Neither the order of the builders nor those that lose matter.
		random.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		if again, _ := Place(Snapshot{Builders: left, Now: noon}, r); left[again].ID != got {
			t.Fatalf("placed on %s, of %+v alone on %s", got, left, left[again].ID)
		}
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
