// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// newRun returns a run whose files are in a directory of the test.
func newRun(t *testing.T, args ...string) (*run, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	o, err := parseOptions(append([]string{"-source=" + dir, "-json=" + filepath.Join(dir, "bench.json"), "-page=" + filepath.Join(dir, "page.md")}, args...))
	if err != nil {
		t.Fatal(err)
	}
	out := &bytes.Buffer{}
	page := "<!-- begin: written by make bench -->\n<!-- end: written by make bench -->\n"
	if err := os.WriteFile(o.page, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	document := figures.Document{Commit: "abc", Date: time.Unix(0, 0), Series: figures.Series{}}
	for _, way := range []string{figures.Direct, figures.Floor, figures.Dispatcher} {
		document.Series.Add("trivial_loopback", "2.8.0", way, 1)
	}
	return &run{options: o, out: out, document: document}, out
}

// mustWrite writes the results of a run and returns bench.json.
func mustWrite(t *testing.T, r *run) (output, *figures.Document) {
	t.Helper()
	o, err := r.openOutput()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.write(o); err != nil {
		t.Fatal(err)
	}
	d, err := figures.Load(o.json)
	if err != nil {
		t.Fatal(err)
	}
	return o, d
}

func TestWrite(t *testing.T) {
	t.Parallel()
	r, out := newRun(t)
	busy := &busyness{times: []time.Duration{0, time.Second}, running: [][]int{{0, 0, 0}, {1, 2, 4}}}
	r.timelines = []timeline{{version: nixlab.Nix28, nix: "2.8.0", way: figures.Dispatcher, busy: busy}}
	_, d := mustWrite(t, r)
	if len(d.Series) != 1 {
		t.Errorf("series: %v", d.Series)
	}
	if !strings.Contains(out.String(), "trivial_loopback_ratio") {
		t.Errorf("the figures are not shown:\n%s", out)
	}
	page, err := os.ReadFile(r.options.page)
	if err != nil || !strings.Contains(string(page), "trivial_loopback_ratio") {
		t.Errorf("the page is not up to date: %v\n%s", err, page)
	}
	for _, name := range []string{"trivial.svg", "makespan-bookworm.svg"} {
		if _, err := os.Stat(filepath.Join(strings.TrimSuffix(r.options.page, ".md"), name)); err != nil {
			t.Error(err)
		}
	}
}

func TestSectionsAreAddedToTheirOwn(t *testing.T) {
	t.Parallel()
	r, _ := newRun(t, "-sections=trivial")
	mustWrite(t, r)
	r.document.Series = figures.Series{}
	r.document.Series.Add("chain_loopback", "2.8.0", figures.Direct, 1)
	if _, d := mustWrite(t, r); len(d.Series) != 2 {
		t.Errorf("what was measured before on the same commit is lost: %v", d.Series)
	}
}

func TestSectionsAreNotAddedToOthers(t *testing.T) {
	t.Parallel()
	r, out := newRun(t, "-sections=trivial")
	mustWrite(t, r)
	before, err := os.ReadFile(r.options.json)
	if err != nil {
		t.Fatal(err)
	}
	r.document.Commit = "def"
	o, d := mustWrite(t, r)
	if o.json == r.options.json || d.Commit != "def" || !strings.Contains(out.String(), "cannot be added") {
		t.Errorf("results of another commit went to %s\n%s", o.json, out)
	}
	after, err := os.ReadFile(r.options.json)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the results of before are changed: %v", err)
	}
	// All of another commit replaces all.
	r.options.sections = sections()
	if o, d := mustWrite(t, r); o.json != r.options.json || d.Commit != "def" {
		t.Errorf("a complete run went to %s", o.json)
	}
}

func TestChaosReport(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		report    string
		wantError bool
	}{
		"kills and losses": {report: `{"kills": 50, "builds_lost": 0, "per_phase": {"Building": 8}}`},
		"no losses in it":  {report: `{"kills": 50}`, wantError: true},
		"not JSON":         {report: `kills`, wantError: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "kills.json")
			if err := os.WriteFile(path, []byte(tc.report), 0o644); err != nil {
				t.Fatal(err)
			}
			r, _ := newRun(t, "-chaos-report="+path)
			r.document.Series.Add("kills", "2.8.0", figures.Dispatcher, 4)
			err := r.addChaos(&r.document)
			if (err != nil) != tc.wantError {
				t.Fatalf("error %v", err)
			}
			if f := figures.Compute(r.document.Series)["kills"]; !tc.wantError && (f.Median != 50 || len(f.ByNix) != 1) {
				t.Errorf("kills are %+v", f)
			}
		})
	}
}

func TestMeasuredCommit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shell := func(script string) {
		t.Helper()
		command := exec.Command("sh", "-euc", script)
		command.Dir = dir
		command.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com", "GIT_CONFIG_GLOBAL=/dev/null")
		if output, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
	}
	commit := func() string {
		t.Helper()
		commit, err := measuredCommit(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return commit
	}
	shell("git init -q; mkdir internal docs; echo 1 > internal/a; git add .; git commit -qm one")
	first := commit()
	shell("echo 1 > docs/b; git add .; git commit -qm docs; echo 1 > bench.json")
	if got := commit(); got != first {
		t.Errorf("documents change the measured commit from %s to %s", first, got)
	}
	shell("echo 2 > internal/a")
	if got := commit(); got != first+"-modified" {
		t.Errorf("a change that is not committed gives %s", got)
	}
	shell("git commit -qam two")
	if got := commit(); got == first || strings.HasSuffix(got, "-modified") {
		t.Errorf("a commit of code gives %s, as before: %s", got, first)
	}
}

func TestThisMachine(t *testing.T) {
	t.Parallel()
	m, err := thisMachine()
	if err != nil {
		t.Fatal(err)
	}
	if m.Cores < 1 || m.MemoryMiB < 100 || m.Kernel == "" || m.Congestion == "" || m.CPU == "" {
		t.Errorf("incomplete: %+v", m)
	}
	if _, err := loadAverage(); err != nil {
		t.Error(err)
	}
}
