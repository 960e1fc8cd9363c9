// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSet(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{0, 1, 63, 64, 65, 1000} {
		s, u := newSet(size), newSet(size)
		has, other := make([]bool, size), make([]bool, size)
		for range 3 * size {
			i := random.IntN(size)
			if has[i] = random.IntN(2) == 0; has[i] {
				s.add(i)
			} else {
				s.remove(i)
			}
			if i = random.IntN(size); random.IntN(4) == 0 {
				u.add(i)
				other[i] = true
			}
		}
		var members, both []int
		for i := range size {
			if s.has(i) != has[i] {
				t.Fatalf("%d of %d: %v, want %v", i, size, s.has(i), has[i])
			}
			if has[i] {
				members = append(members, i)
			}
			if has[i] && other[i] {
				both = append(both, i)
			}
		}
		if got := slices.Collect(s.all()); !slices.Equal(got, members) {
			t.Errorf("members %v, want %v", got, members)
		}
		if got := slices.Collect(s.and(u).all()); !slices.Equal(got, both) {
			t.Errorf("common members %v, want %v", got, both)
		}
		if s.empty() != (len(members) == 0) || s.intersects(u) != (len(both) > 0) {
			t.Errorf("empty: %v, intersects: %v, with members %v, common %v", s.empty(), s.intersects(u), members, both)
		}
	}
}
