// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	parallelBuilds = 20
	parallelSlots  = 8
	chainLength    = 15
	// smallLimit bounds one run of small builds.
	smallLimit = 5 * time.Minute
)

// scenario is what every way does in turn.
type scenario struct {
	name string
	// expression returns what to build, under a name that is new every time.
	expression func(name string) string
}

func trivial() scenario {
	return scenario{name: "trivial", expression: nixlab.Trivial}
}

func parallel() scenario {
	return scenario{name: "parallel", expression: func(name string) string {
		return nixlab.Parallel(name, parallelBuilds, nixlab.Trivial)
	}}
}

func chain() scenario {
	return scenario{name: "chain", expression: func(name string) string { return chainOf(name, chainLength) }}
}

// chainOf is n derivations each of which reads the output of the one before.
func chainOf(name string, n int) string {
	return fmt.Sprintf(`builtins.foldl' (before: i: derivation {
	name = "%s-${toString i}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
	args = [ "-c" "cat $before /dev/null > $out; echo ${toString i} >> $out" ]; inherit before;
}) "/dev/null" (builtins.genList (i: i) %d)`, name, n)
}

// latency measures a scenario of small builds on lines of the kind.
func (r *run) latency(ctx context.Context, s *site, kind lineKind, what scenario) error {
	t, err := s.threeWays(ctx, kind)
	if err != nil {
		return err
	}
	defer t.Close()
	for round := range r.rounds(kind) {
		for _, w := range t.inRound(round) {
			err := r.time(s, t.dispatcher, what.name+"_"+kind.name, w.name, func() (time.Duration, error) {
				return s.build(ctx, s.client, w, what.expression(s.name(what.name)), smallLimit)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// threeWays prepares all ways over lines of the kind, and takes each once, so that
// none is charged for what happens once only: the dispatcher's connection to the
// builder, and pages of programs that are read from the disk.
func (s *site) threeWays(ctx context.Context, kind lineKind) (*ways, error) {
	t := &ways{}
	if err := s.prepare(ctx, t, kind); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (s *site) prepare(ctx context.Context, t *ways, kind lineKind) error {
	direct, err := s.direct(s.client, kind, parallelSlots)
	if err != nil {
		return err
	}
	floor, closeFloor, err := s.floor(ctx, kind, parallelSlots)
	if err != nil {
		return err
	}
	t.closers = append(t.closers, closeFloor)
	t.dispatcher, err = s.startDispatcher(ctx, kind, []int{parallelSlots})
	if err != nil {
		return err
	}
	t.closers = append(t.closers, t.dispatcher.stop)
	t.list = []way{direct, floor, t.dispatcher.way()}
	for _, w := range t.list {
		if _, err := s.build(ctx, s.client, w, nixlab.Trivial(s.name("warm")), smallLimit); err != nil {
			return err
		}
	}
	return nil
}

// ways are the ways to compare.
type ways struct {
	list       []way
	dispatcher *dispatcher
	closers    []func()
}

// Close ends what the ways are made of.
func (t *ways) Close() {
	for _, closeOne := range t.closers {
		closeOne()
	}
}

// inRound returns the ways in the order of a round: each begins with another one,
// so that none is always the first or after the same other.
func (t *ways) inRound(round int) []way {
	n := len(t.list)
	first := (n - round%n) % n
	return slices.Concat(t.list[first:], t.list[:first])
}
