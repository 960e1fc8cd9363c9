// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// buildPatience bounds one nix-build of a graph, faults included.
const buildPatience = 5 * time.Minute

// maxProblems ends a run early.
const maxProblems = 5

// derivationName is the name in the store path of a derivation.
func derivationName(drv string) string {
	_, name, _ := strings.Cut(path.Base(drv), "-")
	return strings.TrimSuffix(name, ".drv")
}

func TestChaos(t *testing.T) {
	requireLab(t)
	labs := []struct {
		name     string
		builders []nixlab.Version
	}{
		{"a builder of each version", nixlab.Versions()},
		{"equal builders", []nixlab.Version{nixlab.Newest, nixlab.Newest, nixlab.Newest}},
	}
	duration := *durationFlag
	if duration < time.Minute {
		labs = labs[:1] // among many other tests
	}
	for i, lab := range labs {
		t.Run(lab.name, func(t *testing.T) {
			chaos(t, lab.builders, *seedFlag+uint64(i), duration/time.Duration(len(labs)))
		})
	}
}

// chaos has clients build graphs while the plan of the seed is carried out.
func chaos(t *testing.T, builders []nixlab.Version, seed uint64, duration time.Duration) {
	t.Logf("seed %d: repeat with -seed=%d -duration=%v", seed, *seedFlag, *durationFlag)
	w := newWorld(t, worldOptions{builders: builders, clients: nixlab.Versions(), slots: 2})
	before := w.settle(t, usage{})
	ctx := t.Context()
	var group sync.WaitGroup
	for _, b := range w.builders {
		if err := b.collect(ctx); err != nil {
			t.Fatal(err)
		}
	}
	crowd := &crowd{w: w, until: time.Now().Add(duration), seed: seed}
	for i := range w.clients {
		group.Go(func() { crowd.build(ctx, i) })
	}
	if err := w.carryOut(ctx, plan(seed, duration, len(w.builders))); err != nil {
		t.Error(err)
	}
	w.events.note("harness: no more faults")
	group.Wait()

	if len(crowd.problems) > 0 {
		t.Errorf("went wrong, see the events: %v", crowd.problems)
	}
	orphans := crowd.orphans()
	t.Logf("%d graphs with %d derivations, every byte right; %d times a derivation needed what only a builder had built that was killed since",
		crowd.graphs, crowd.derivations, orphans)
	if crowd.graphs < len(w.clients) {
		t.Errorf("only %d graphs were built", crowd.graphs)
	}
	for _, b := range w.builders {
		runs, paths, err := b.endCollections(t.Context())
		t.Logf("%s: %d garbage collections took %d paths (%v)", b.Name(), runs, paths, err)
		if err != nil || runs == 0 {
			t.Errorf("the garbage collector never ran on %s", b.Name())
		}
	}
	w.settle(t, before)
	w.end(t)
}

// crowd is all clients, building.
type crowd struct {
	w     *world
	until time.Time
	seed  uint64

	mu    sync.Mutex
	built []graph
	// graphs and derivations count what was built and found right.
	graphs, derivations int
	// problems are the names of graphs that went wrong.
	problems []string
}

// build has one client build graph after graph until the time is up.
func (c *crowd) build(ctx context.Context, number int) {
	random := rand.New(rand.NewPCG(c.seed, uint64(100+number)))
	for i := 0; time.Now().Before(c.until) && !c.hopeless(); i++ {
		name := fmt.Sprintf("s%d-c%d-g%d", c.seed, number+1, i)
		graphs := random
		if i%3 == 2 {
			// Every third is one that all clients build, maybe at the same time.
			name = fmt.Sprintf("s%d-common-g%d", c.seed, i)
			graphs = rand.New(rand.NewPCG(c.seed, uint64(1000+i)))
		}
		c.one(ctx, c.w.clients[number], name, drawGraph(graphs, name))
	}
}

// one builds one graph and compares all of its outputs.
func (c *crowd) one(ctx context.Context, from *client, name string, g graph) {
	limited, cancel := context.WithTimeout(ctx, buildPatience)
	defer cancel()
	from.w.events.note("%s: builds %s, %d derivations", from.Name(), name, len(g))
	result, err := from.build(limited, g)
	switch {
	case err != nil:
	case result.Status != 0:
		down := from.w.events.allDown(from.w.names(), result.ended)
		err = fmt.Errorf("%s failed on %s at %s (every builder down for %v then):\n%s",
			name, from.Name(), result.ended.Format("15:04:05.000"), down, lastBytes(result.text, 5000))
	default:
		err = from.verify(g)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		from.w.events.note("%s: %s WENT WRONG: %v", from.Name(), name, err)
		c.problems = append(c.problems, name)
		return
	}
	from.w.events.note("%s: %s is right after %.1f s", from.Name(), name, result.ended.Sub(result.began).Seconds())
	c.built = append(c.built, g)
	c.graphs++
	c.derivations += len(g)
}

// hopeless reports whether so much has gone wrong that more would tell nothing new.
func (c *crowd) hopeless() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.problems) >= maxProblems
}

// orphans counts how often a derivation was built although the only builder that
// had built one of its inputs was killed in between.
func (c *crowd) orphans() int {
	type place struct {
		builder string
		at      time.Time
	}
	built := map[string]place{}
	for _, r := range c.w.dispatcher.log.since(time.Time{}) {
		if r.Message != builtMessage {
			continue
		}
		name := derivationName(r.Derivation)
		if _, twice := built[name]; !twice {
			built[name] = place{r.Builder, r.Time}
		}
	}
	n := 0
	for _, g := range c.built {
		for _, user := range g {
			for _, need := range user.needs {
				from, to := built[need.name], built[user.name]
				if b := c.w.byID(from.builder); b != nil && b.killedBetween(from.at, to.at) {
					n++
				}
			}
		}
	}
	return n
}
