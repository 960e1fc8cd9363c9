// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command bench measures the dispatcher with real Nix clients and builders, and
// beside it what else there is: ssh-ng with OpenSSH, and builders without ssh. It
// writes bench.json, and figures and plots of docs/performance.md, which explains
// the method. `make bench` runs it; it needs root.
//
// Clients and builders are hosts of the Nix lab in network namespaces of their own,
// see package netline for the lines between them. Everything ends with the process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, os.Args[1:], os.Stdout)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// suites are the Debian suites of the lab's versions, which name them on the
// command line too.
var suites = map[nixlab.Version]string{nixlab.Nix28: "bookworm", nixlab.Nix226: "trixie", nixlab.Newest: "testing"}

// options are the flags.
type options struct {
	source      string
	programs    string
	sections    []section
	versions    []nixlab.Version
	runs        int
	mebibytes   int
	seed        uint64
	timeout     time.Duration
	json        string
	page        string
	chaosReport string
}

// complete tells whether the run leaves nothing out.
func (o options) complete() bool {
	return len(o.sections) == len(sections()) && len(o.versions) == len(nixlab.Versions())
}

func parseOptions(args []string) (options, error) {
	var (
		o                  options
		sectionList, suite string
	)
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.source, "source", ".", "`directory` of the repository")
	flags.StringVar(&o.programs, "programs", "", "`directory` with other binaries of the programs to measure")
	flags.StringVar(&sectionList, "sections", "all", "`names` of the parts to run, separated by commas: "+strings.Join(sectionNames(), ", "))
	flags.StringVar(&suite, "versions", "all", "Debian `suites` whose Nix takes part: bookworm, trixie, testing")
	flags.IntVar(&o.runs, "runs", 0, "`number` of rounds of every section; by default each has its own")
	flags.IntVar(&o.mebibytes, "size", 1024, "`MiB` to transfer")
	flags.Uint64Var(&o.seed, "seed", 1, "chooses the lengths of builds")
	flags.DurationVar(&o.timeout, "timeout", 2*time.Hour, "longest `time` for everything")
	flags.StringVar(&o.json, "json", "bench.json", "`file` for the results")
	flags.StringVar(&o.page, "page", "docs/performance.md", "`file` whose figures are brought up to date, with a directory for its plots beside it")
	flags.StringVar(&o.chaosReport, "chaos-report", "", "`file` with the result of the chaos test, whose kills then count instead of this run's")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.runs < 0 || o.mebibytes < lossyInputs {
		return o, fmt.Errorf("--runs must not be negative, and --size not below %d", lossyInputs)
	}
	var err error
	if o.sections, err = chooseSections(sectionList); err != nil {
		return o, err
	}
	o.versions, err = chooseVersions(suite)
	return o, err
}

func sectionNames() []string {
	var names []string
	for _, each := range sections() {
		names = append(names, each.name)
	}
	return names
}

// chooseSections returns the sections of a list, in their own order.
func chooseSections(list string) ([]section, error) {
	if list == "all" {
		return sections(), nil
	}
	wanted := strings.Split(list, ",")
	for _, name := range wanted {
		if !slices.Contains(sectionNames(), name) {
			return nil, fmt.Errorf("there is no section %q, only %s", name, strings.Join(sectionNames(), ", "))
		}
	}
	return slices.DeleteFunc(sections(), func(each section) bool { return !slices.Contains(wanted, each.name) }), nil
}

// chooseVersions returns the versions of a list of suites, the oldest first.
func chooseVersions(list string) ([]nixlab.Version, error) {
	if list == "all" {
		return nixlab.Versions(), nil
	}
	var versions []nixlab.Version
	for _, version := range nixlab.Versions() {
		if slices.Contains(strings.Split(list, ","), suites[version]) {
			versions = append(versions, version)
		}
	}
	if len(versions) != len(strings.Split(list, ",")) {
		return nil, fmt.Errorf("--versions=%s: there are bookworm, trixie and testing", list)
	}
	return versions, nil
}

// bench runs everything and writes the results.
func bench(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done after %v", o.timeout))
	defer cancel()
	r := &run{options: o, out: out, document: figures.Document{
		Date:     time.Now().UTC().Truncate(time.Second),
		Versions: map[string]string{},
		Sections: map[string]figures.Section{},
		Lines:    map[string]float64{},
		Series:   figures.Series{},
	}}
	if err := r.identify(ctx); err != nil {
		return err
	}
	output, err := r.openOutput()
	if err != nil {
		return err
	}
	if r.lab, err = nixlab.New(nixlab.Options{Progress: func(line string) { r.say("%s", line) }}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.lab.Close()) }()
	r.programs = filepath.Join(r.lab.Dir(), "bin")
	if err := buildPrograms(ctx, o.source, r.programs); err != nil {
		return err
	}
	if err := r.replacePrograms(); err != nil {
		return err
	}
	failure := r.all(ctx)
	if ctx.Err() != nil {
		return failure
	}
	return errors.Join(failure, r.write(output))
}
