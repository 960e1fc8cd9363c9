// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// smokeArgs are those of a run that takes some seconds and leaves the repository's
// files alone.
func smokeArgs(t *testing.T, sections string) (args []string, json string) {
	t.Helper()
	if err := nixlab.Prerequisites(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	// The lab's files are looked for afterwards.
	t.Setenv("TMPDIR", dir)
	page := filepath.Join(dir, "page.md")
	if err := os.WriteFile(page, []byte("<!-- begin: written by make bench -->\n<!-- end: written by make bench -->\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	json = filepath.Join(dir, "bench.json")
	return []string{"-source=../..", "-json=" + json, "-page=" + page, "-versions=trixie", "-runs=1", "-size=8", "-timeout=3m", "-sections=" + sections}, json
}

func TestSmoke(t *testing.T) {
	args, json := smokeArgs(t, "transfer,failover")
	var out bytes.Buffer
	if err := bench(t.Context(), args, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	d, err := figures.Load(json)
	if err != nil {
		t.Fatal(err)
	}
	all := figures.Compute(d.Series)
	for _, name := range []string{"upload_ratio", "download_ratio", "transfer_rss_mib", "failover_closed_seconds", "kills"} {
		if all[name].Runs != 1 || all[name].Median <= 0 {
			t.Errorf("%s is %+v", name, all[name])
		}
	}
	if rtt := d.Lines[rtt80.name]; rtt < 80 || rtt > 500 {
		t.Errorf("the line of 80 ms has a round-trip time of %v ms", rtt)
	}
}

// cancelOn is a writer that calls cancel as soon as it sees text.
type cancelOn struct {
	text   string
	cancel context.CancelFunc
}

func (c cancelOn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		c.cancel()
	}
	return len(p), nil
}

func TestInterrupt(t *testing.T) {
	args, json := smokeArgs(t, "trivial")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := bench(ctx, args, cancelOn{figures.Dispatcher, cancel}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(json); err == nil {
		t.Error("an interrupted run has written results")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(json), "nixlab-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
