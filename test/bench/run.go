// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// stationsOfSite is how many builders the largest section needs.
const stationsOfSite = 3

// section is a part of the benchmark that can be run alone.
type section struct {
	name string
	// runs are the rounds on lines of each kind, unless the user says otherwise.
	runs map[string]int
	// measure works on one site; nil where no Nix takes part.
	measure func(*run, context.Context, *site) error
}

// sections lists all, in the order in which they are run.
func sections() []section {
	everywhere := func(name string, what scenario, onLoopback, on20, on80 int) section {
		return section{
			name: name,
			runs: map[string]int{loopback.name: onLoopback, rtt20.name: on20, rtt80.name: on80},
			measure: func(r *run, ctx context.Context, s *site) error {
				for _, kind := range []lineKind{loopback, rtt20, rtt80} {
					if err := r.latency(ctx, s, kind, what); err != nil {
						return err
					}
				}
				return nil
			},
		}
	}
	once := func(name string, runs int, measure func(*run, context.Context, *site) error) section {
		return section{name: name, runs: map[string]int{loopback.name: runs, lossy.name: runs}, measure: measure}
	}
	return []section{
		everywhere("trivial", trivial(), 7, 3, 4),
		everywhere("parallel", parallel(), 4, 1, 1),
		everywhere("chain", chain(), 3, 1, 2),
		once("transfer", 2, (*run).transfer),
		once("lossy", 1, (*run).lossyTransfer),
		once("makespan", 1, (*run).makespan),
		once("lines", 5, (*run).lines),
		once("failover", 4, (*run).failover),
		once("placement", 3, nil),
	}
}

// run is one run of the benchmark.
type run struct {
	options  options
	lab      *nixlab.Lab
	programs string
	out      io.Writer
	current  section
	document figures.Document
	// timelines are the first of the makespan by each Nix version and way.
	timelines []timeline
}

// timeline is what ran on the builders while clients built by one way.
type timeline struct {
	version nixlab.Version
	nix     string
	way     string
	busy    *busyness
}

// say tells the user something.
func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.out, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// add keeps a sample and shows it.
func (r *run) add(scenario string, s *site, way string, sample float64) {
	r.document.Series.Add(scenario, s.client.Nix(), way, sample)
	r.say("%-20s Nix %-8s %-10s %8.3f", scenario, s.client.Nix(), way, sample)
}

// keep keeps a timeline if it is the first of its kind.
func (r *run) keep(s *site, way string, busy *busyness) {
	same := func(t timeline) bool { return t.version == s.version && t.way == way }
	if !slices.ContainsFunc(r.timelines, same) {
		r.timelines = append(r.timelines, timeline{version: s.version, nix: s.client.Nix(), way: way, busy: busy})
	}
}

// rounds is how often the current section is to take each way on lines of the kind.
func (r *run) rounds(kind lineKind) int {
	if r.options.runs > 0 {
		return r.options.runs
	}
	return r.current.runs[kind.name]
}

// all runs the sections that the options ask for. A section that fails does not
// keep the others from running; its error is returned in the end. An interrupt ends
// it at once.
func (r *run) all(ctx context.Context) error {
	var failures []error
	for _, version := range r.options.versions {
		failures = append(failures, r.onSite(ctx, version))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	for _, each := range r.options.sections {
		if each.measure == nil {
			failures = append(failures, r.section(ctx, each, func() error { return r.placement(ctx) }))
		}
	}
	return errors.Join(failures...)
}

// onSite runs the sections with one Nix version.
func (r *run) onSite(ctx context.Context, version nixlab.Version) error {
	if !slices.ContainsFunc(r.options.sections, func(each section) bool { return each.measure != nil }) {
		return nil
	}
	s, err := newSite(ctx, r.lab, r.programs, version, stationsOfSite)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := r.describe(ctx, s); err != nil {
		return err
	}
	var failures []error
	for _, each := range r.options.sections {
		if each.measure == nil {
			continue
		}
		failures = append(failures, r.section(ctx, each, func() error { return each.measure(r, ctx, s) }))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failures...)
}

// section runs one section and notes when, how long, and on how busy a machine.
func (r *run) section(ctx context.Context, each section, measure func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r.current = each
	load, err := loadAverage()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := measure(); err != nil {
		return fmt.Errorf("section %s: %w", each.name, err)
	}
	note, ok := r.document.Sections[each.name]
	if !ok {
		note = figures.Section{Date: began.UTC().Truncate(time.Second), Load: load}
	}
	note.Seconds += time.Since(began).Round(time.Second).Seconds()
	r.document.Sections[each.name] = note
	return nil
}

// describe notes what the site is made of.
func (r *run) describe(ctx context.Context, s *site) error {
	suite := suites[s.version]
	r.document.Versions["Nix "+suite] = s.client.Nix()
	ssh, err := s.client.Exec(ctx, "sh", "-c", "ssh -V 2>&1")
	if err != nil {
		return err
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(ssh, "OpenSSH_"), " ")
	r.document.Versions["OpenSSH "+suite] = name
	for _, kind := range lineKinds() {
		rtt, err := s.stations[0].lines[kind.name].Measure(22)
		if err != nil {
			return err
		}
		milliseconds := float64(rtt.Round(10*time.Microsecond)) / float64(time.Millisecond)
		if known, ok := r.document.Lines[kind.name]; !ok || milliseconds < known {
			r.document.Lines[kind.name] = milliseconds
		}
	}
	return nil
}
