// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	failoverLimit = 2 * time.Minute
	// failoverInput is the size of the build's input.
	failoverInput = 1 << 20
	// failoverWork is how long the build works: longer than a builder that is
	// looked at every few milliseconds takes to be found and killed.
	failoverWork = "1.5"
)

// failover measures how soon a build begins anew whose builder is killed. All of a
// builder's processes are killed at once, and its kernel, which is this one, closes
// their connections.
func (r *run) failover(ctx context.Context, s *site) error {
	d, err := s.startDispatcher(ctx, loopback, []int{1, 1, 1})
	if err != nil {
		return err
	}
	defer d.stop()
	lost, kills := 0, r.rounds(loopback)
	for range kills {
		took, err := s.killUnderBuild(ctx, d)
		switch {
		case errors.Is(err, errBuild):
			r.say("%v", err)
			lost++
		case err != nil:
			return err
		default:
			r.add("failover", s, figures.Dispatcher, took.Seconds())
		}
	}
	r.add("kills", s, figures.Dispatcher, float64(kills))
	r.add("builds_lost", s, figures.Dispatcher, float64(lost))
	return nil
}

// killUnderBuild has one build run, kills the builder that runs it, and returns the
// time from then until another one has started it. The killed one is up again when
// it returns.
func (s *site) killUnderBuild(ctx context.Context, d *dispatcher) (time.Duration, error) {
	name := s.name("failover")
	ctx, cancel := context.WithTimeoutCause(ctx, failoverLimit, fmt.Errorf("not done after %v", failoverLimit))
	defer cancel()
	built := make(chan error, 1)
	go func() {
		_, err := s.build(ctx, s.client, d.way(), movable(name), failoverLimit)
		built <- err
	}()

	first, _, err := s.findBuild(ctx, name, nil)
	if err != nil {
		cancel()
		return 0, errors.Join(err, <-built)
	}
	killed := time.Now()
	first.Kill()
	_, began, found := s.findBuild(ctx, name, first)
	if err := <-built; err != nil {
		return 0, errors.Join(err, first.Restart(ctx))
	}
	return began.Sub(killed), errors.Join(found, first.Restart(ctx))
}

// movable is a build that leaves the time at which it began on its builder.
func movable(name string) string {
	return fmt.Sprintf(`derivation { name = %[1]q; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
	args = [ "-c" "date +%%s%%N > /tmp/.%[1]s; mv /tmp/.%[1]s /tmp/began-%[1]s; sleep %[2]s; wc -c < $input > $out" ];
	input = builtins.toFile "%[1]s-input" (builtins.concatStringsSep "" (builtins.genList (i: builtins.hashString "sha256" "%[1]s ${toString i}") %[3]d)); }`,
		name, failoverWork, failoverInput/64)
}

// findBuild waits until a builder other than the one given has begun the build, and
// returns it and the time at which it did.
func (s *site) findBuild(ctx context.Context, name string, other *station) (*station, time.Time, error) {
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for {
		for _, b := range s.stations {
			if b == other {
				continue
			}
			if began, ok := b.began(name); ok {
				return b, began, nil
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, time.Time{}, fmt.Errorf("no builder has begun %s: %w", name, context.Cause(ctx))
		}
	}
}

// began returns when the builder began a build of movable.
func (b *station) began(name string) (time.Time, bool) {
	pid, err := b.PID()
	if err != nil {
		return time.Time{}, false
	}
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "root/tmp/began-"+name))
	if err != nil {
		return time.Time{}, false
	}
	nanoseconds, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return time.Unix(0, nanoseconds), err == nil
}

// lines measures a trivial build of clients with files of several lengths.
func (r *run) lines(ctx context.Context, s *site) error {
	counts := []int{16, 256, 1024}
	most := counts[len(counts)-1]
	// Four lines for each slot.
	d, err := s.startDispatcher(ctx, loopback, []int{most / 4}, fmt.Sprintf("--max-lines=%d", most))
	if err != nil {
		return err
	}
	defer d.stop()
	machines, err := os.ReadFile(filepath.Join(s.shared, d.name, "machines"))
	if err != nil {
		return err
	}
	for _, n := range counts {
		text, err := firstMachines(string(machines), n)
		if err != nil {
			return err
		}
		if err := s.client.WriteFile(linesFile(n), text, 0o644); err != nil {
			return err
		}
	}
	if _, err := s.build(ctx, s.client, d.way(), nixlab.Trivial(s.name("warm")), smallLimit); err != nil {
		return err
	}
	for round := range r.rounds(loopback) {
		for i := range counts {
			n := counts[(i+round)%len(counts)]
			w := way{name: figures.Dispatcher, builders: "@" + linesFile(n)}
			took, err := s.build(ctx, s.client, w, nixlab.Trivial(s.name("lines")), smallLimit)
			if err != nil {
				return err
			}
			r.add(fmt.Sprintf("lines%d", n), s, w.name, took.Seconds())
		}
	}
	return nil
}

func linesFile(n int) string { return fmt.Sprintf("/etc/nix/machines.lines%d", n) }

// firstMachines returns the first n machines of a file.
func firstMachines(text string, n int) (string, error) {
	var first []string
	for line := range strings.Lines(text) {
		if line != "\n" && !strings.HasPrefix(line, "#") && len(first) < n {
			first = append(first, line)
		}
	}
	if len(first) < n {
		return "", fmt.Errorf("the dispatcher has written %d lines, %d are needed", len(first), n)
	}
	return strings.Join(first, ""), nil
}
