// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// outline is what matters of steps.
func outline(steps []step) (lines []string) {
	for _, s := range steps {
		lines = append(lines, fmt.Sprintf("%v %v %s %d", s.at, s.lasts, s.fault.name, s.builder))
	}
	return lines
}

func TestPlans(t *testing.T) {
	t.Parallel()
	const builders = 3
	for seed := range uint64(50) {
		steps := plan(seed, 10*time.Minute, builders)
		if diff := cmp.Diff(outline(steps), outline(plan(seed, 10*time.Minute, builders))); diff != "" {
			t.Fatalf("seed %d gives another plan the second time:\n%s", seed, diff)
		}
		happened := map[string]int{}
		for i, s := range steps {
			happened[s.fault.name]++
			under := map[int]bool{}
			for _, other := range steps[:i] {
				if other.at+other.lasts <= s.at || other.fault.list || s.fault.list {
					continue
				}
				if other.fault.all || s.fault.all || other.builder == s.builder {
					t.Errorf("seed %d: %q of builder %d begins during %q of builder %d", seed, s.fault.name, s.builder, other.fault.name, other.builder)
				}
				under[other.builder] = true
			}
			if len(under) >= builders-1 {
				t.Errorf("seed %d: at %v no builder is left alone", seed, s.at)
			}
		}
		for _, f := range faults {
			if happened[f.name] == 0 {
				t.Errorf("seed %d: in ten minutes never %q", seed, f.name)
			}
		}
	}
}

func TestGraphs(t *testing.T) {
	t.Parallel()
	draw := func(seed uint64) graph { return drawGraph(rand.New(rand.NewPCG(seed, 2)), "g") }
	for seed := range uint64(30) {
		g := draw(seed)
		if again := draw(seed); g.expression() != again.expression() || !bytes.Equal(g.root().want(), again.root().want()) {
			t.Fatalf("seed %d gives another graph the second time", seed)
		}
		if g.root().level < 2 {
			t.Errorf("seed %d: %d levels only", seed, g.root().level+1)
		}
		for _, n := range g {
			if n.level > 0 && len(n.needs) == 0 {
				t.Errorf("seed %d: %s needs nothing", seed, n.name)
			}
		}
	}
}
