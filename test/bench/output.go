// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
)

// identify notes what is measured and where.
func (r *run) identify(ctx context.Context) (err error) {
	if r.document.Commit, err = measuredCommit(ctx, r.options.source); err != nil {
		return err
	}
	if r.options.programs != "" {
		r.document.Commit += "-other-programs"
	}
	if r.document.Load, err = loadAverage(); err != nil {
		return err
	}
	r.document.Versions["Go"] = strings.TrimPrefix(runtime.Version(), "go")
	r.document.Machine, err = thisMachine()
	return err
}

// replacePrograms puts the user's programs in the place of those just built.
func (r *run) replacePrograms() error {
	if r.options.programs == "" {
		return nil
	}
	for _, name := range []string{"nix-dispatcher", "nix-dispatch-connect"} {
		if err := copyFile(filepath.Join(r.programs, name), filepath.Join(r.options.programs, name)); err != nil {
			return err
		}
	}
	return nil
}

// output is where results go.
type output struct {
	json string
	// page is empty where the results are not for the documentation.
	page string
	// before are results to which those of this run belong.
	before *figures.Document
}

// openOutput decides where the results of this run go. A complete run replaces what
// was there. One of some sections is added to what was measured on the same commit
// and machine; without that, it leaves the repository's files alone.
func (r *run) openOutput() (output, error) {
	o := output{json: r.options.json, page: r.options.page}
	before, err := figures.Load(o.json)
	if err != nil || r.options.complete() || before == nil {
		return o, err
	}
	if reason := before.Comparable(r.document); reason != nil {
		o.json, o.page = filepath.Join(r.options.source, "bin", "bench.json"), ""
		r.say("The results go to %s: they cannot be added to %s, %v", o.json, r.options.json, reason)
		return o, nil
	}
	o.before = before
	return o, nil
}

// write saves the results and shows them.
func (r *run) write(o output) error {
	d := r.document
	if o.before != nil {
		d = o.before.Merge(d)
	}
	if err := r.addChaos(&d); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.json), 0o755); err != nil {
		return err
	}
	if err := d.Save(o.json); err != nil {
		return err
	}
	fmt.Fprintln(r.out, d.Text())
	if o.page == "" {
		r.say("Every sample is in %s", o.json)
		return nil
	}
	if err := r.writePage(o.page, d); err != nil {
		return err
	}
	r.say("Every sample is in %s; the figures and plots of %s are up to date", o.json, o.page)
	return nil
}

// writePage brings the documentation up to date.
func (r *run) writePage(path string, d figures.Document) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := figures.Replace(string(page), d.Markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	plots := strings.TrimSuffix(path, filepath.Ext(path))
	return errors.Join(os.WriteFile(path, []byte(text), 0o644), r.writePlots(plots, d))
}

// addChaos takes kills and lost builds from the report of the chaos test.
func (r *run) addChaos(d *figures.Document) error {
	if r.options.chaosReport == "" {
		return nil
	}
	text, err := os.ReadFile(r.options.chaosReport)
	if err != nil {
		return err
	}
	var report struct {
		Kills      *float64       `json:"kills"`
		BuildsLost *float64       `json:"builds_lost"`
		PerPhase   map[string]int `json:"per_phase"`
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return fmt.Errorf("%s: %w", r.options.chaosReport, err)
	}
	if report.Kills == nil || report.BuildsLost == nil {
		return fmt.Errorf("%s: it lacks kills or builds_lost", r.options.chaosReport)
	}
	d.KillsPerPhase = report.PerPhase
	for name, value := range map[string]float64{"kills": *report.Kills, "builds_lost": *report.BuildsLost} {
		d.Series[name] = map[string]map[string][]float64{figures.AnyNix: {figures.Dispatcher: {value}}}
	}
	return nil
}
