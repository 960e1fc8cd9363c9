// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	makespanClients = 4
	makespanBuilds  = 25 // of each client
	makespanLimit   = 5 * time.Minute
)

// makespanSlots are those of the builders.
func makespanSlots() []int { return []int{1, 2, 4} }

// workload returns how long each build of each client works: from 0.5 to 4.5 s,
// the same with every seed that is the same.
func workload(seed uint64) [][]time.Duration {
	random := rand.New(rand.NewPCG(seed, 0))
	all := make([][]time.Duration, makespanClients)
	for c := range all {
		for range makespanBuilds {
			all[c] = append(all[c], time.Duration(500+random.IntN(4001))*time.Millisecond)
		}
	}
	return all
}

// lowerBound is what no schedule of the work on so many slots can beat: all slots
// are busy all of the time, or one is with the longest build.
func lowerBound(work [][]time.Duration, slots []int) time.Duration {
	var total, longest time.Duration
	for _, builds := range work {
		for _, build := range builds {
			total += build
			longest = max(longest, build)
		}
	}
	all := 0
	for _, n := range slots {
		all += n
	}
	return max(longest, total/time.Duration(all))
}

// coresPath is where a builder keeps a byte for each of its cores that is free. A
// build takes one, and works only then, as it would on a real machine that has
// more builds than cores: sleeping costs nothing, and without this a builder could
// run any number at once.
const coresPath = "/run/cores"

// equip gives a builder so many cores.
func (b *station) equip(ctx context.Context, cores int) error {
	// The first reader that opens the pipe in both directions keeps what is in it.
	_, err := b.Exec(ctx, "bash", "-c", fmt.Sprintf(
		`mkfifo -m 666 %[1]s && { setsid sleep infinity <>%[1]s >/dev/null 2>&1 & } && printf '%%0%[2]dd' 0 >%[1]s`, coresPath, cores))
	return err
}

// working is a build that works for so long once it has a core.
func working(name string, length time.Duration) string {
	return fmt.Sprintf(`derivation { name = %q; system = builtins.currentSystem; builder = "/bin/bash"; PATH = "/usr/bin:/bin";
	args = [ "-c" "exec 3<>%[2]s; read -r -N 1 -u 3 core; sleep %[3]g; printf 0 >&3; echo done > $out" ]; }`, name, coresPath, length.Seconds())
}

// makespan measures how long several clients take whose builds need all slots of
// all builders.
func (r *run) makespan(ctx context.Context, s *site) error {
	slots := makespanSlots()
	clients := []*nixlab.Client{s.client}
	for len(clients) < makespanClients {
		client, err := s.startClient(ctx)
		if err != nil {
			return err
		}
		clients = append(clients, client)
	}
	for i, b := range s.stations {
		if err := b.equip(ctx, slots[i]); err != nil {
			return err
		}
	}
	d, err := s.startDispatcher(ctx, loopback, slots)
	if err != nil {
		return err
	}
	defer d.stop()
	t := &ways{list: []way{d.way()}}
	for _, client := range clients {
		direct, err := s.direct(client, loopback, slots...)
		if err != nil {
			return err
		}
		t.list = append(t.list[:1], direct)
		for _, w := range t.list {
			if _, err := s.build(ctx, client, w, nixlab.Trivial(s.name("warm")), smallLimit); err != nil {
				return err
			}
		}
	}
	for round := range r.rounds(loopback) {
		work := workload(uint64(round) + r.options.seed)
		for _, w := range t.inRound(round) {
			var busy *busyness
			err := r.time(s, d, "makespan", w.name, func() (took time.Duration, err error) {
				took, busy, err = s.span(ctx, clients, w, work)
				return took, err
			})
			if err != nil {
				return err
			}
			r.add("slots_exceeded", s, w.name, float64(busy.exceeded(slots)))
			for i, most := range busy.most() {
				r.add(fmt.Sprint(figures.MostRunning, slots[i]), s, w.name, float64(most))
			}
			r.keep(s, w.name, busy)
		}
		r.add("makespan", s, figures.Bound, lowerBound(work, slots).Seconds())
	}
	return nil
}

// span has all clients build their work at once, and returns the time until the
// last is done, and what ran where meanwhile.
func (s *site) span(ctx context.Context, clients []*nixlab.Client, w way, work [][]time.Duration) (time.Duration, *busyness, error) {
	name := s.name("span")
	watcher := watch(s.stations)
	var group sync.WaitGroup
	failures := make([]error, len(clients))
	began := time.Now()
	for c, client := range clients {
		var list []string
		for i, length := range work[c] {
			list = append(list, "("+working(fmt.Sprintf("%s-%d-%d", name, c, i), length)+")")
		}
		group.Go(func() {
			_, failures[c] = s.build(ctx, client, w, "["+strings.Join(list, " ")+"]", makespanLimit)
		})
	}
	group.Wait()
	took := time.Since(began)
	return took, watcher.stop(), errors.Join(failures...)
}
