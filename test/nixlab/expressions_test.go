// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab_test

import (
	"fmt"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// Every expression is built on the spot, so that a test that fails with one of
// them over a dispatcher does not fail because of the expression.
func TestExpressions(t *testing.T) {
	lab := newLab(t)
	tests := map[string]struct {
		expression string
		wantStatus int
		wantLog    string
		wantPaths  int // lines on standard output
	}{
		"trivial":       {expression: nixlab.Trivial("trivial"), wantPaths: 1},
		"no inputs":     {expression: nixlab.WithInputs("none", 0), wantPaths: 1},
		"many inputs":   {expression: nixlab.WithInputs("many", 100), wantPaths: 1},
		"large input":   {expression: nixlab.WithLargeInput("large", 1<<20), wantPaths: 1},
		"log":           {expression: nixlab.WithLog("log", "first line", "second line"), wantLog: "second line", wantPaths: 1},
		"eight outputs": {expression: nixlab.WithOutputs("outputs", 8), wantPaths: 8},
		"failing":       {expression: nixlab.Failing("failing", "cannot go on", 7), wantStatus: 1, wantLog: "cannot go on"},
		"fixed output":  {expression: nixlab.FixedOutput("fixed"), wantPaths: 1},
		"sleeping":      {expression: nixlab.Sleeping("sleeping", 0.1), wantLog: "started", wantPaths: 1},
		"commands":      {expression: nixlab.Commands("commands", "echo 'some words'; mkdir $out"), wantLog: "some words", wantPaths: 1},
		"fixed":         {expression: nixlab.FixedCommands("fixed-commands", "printf expected > $out"), wantPaths: 1},
		"not as fixed":  {expression: nixlab.FixedCommands("fixed-otherwise", "printf other > $out"), wantStatus: 1, wantLog: "hash mismatch"},
		"gated":         {expression: nixlab.Gated("gated", "/dev/null"), wantLog: "at the gate", wantPaths: 1},
		"feature":       {expression: nixlab.NeedingFeature("feature", "kvm"), wantPaths: 1},
		"parallel":      {expression: nixlab.Parallel("parallel", 3, nixlab.Trivial), wantPaths: 3},
		"graph":         {expression: nixlab.Graph("graph", 0), wantLog: "compiling library a", wantPaths: 1},
	}
	for _, version := range nixlab.Versions() {
		client, err := lab.StartClient(t.Context(), nixlab.ClientOptions{
			Name: "c" + strings.ReplaceAll(string(version), ".", "-"), Version: version,
			NixConf: "builders =\nmax-jobs = 4\nsystem-features = kvm",
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			// One at a time: the database of a store without a daemon is busy for some
			// of many at once.
			for name, tc := range tests {
				t.Run(name, func(t *testing.T) {
					result, err := client.NixBuildExpr(t.Context(), tc.expression)
					if err != nil {
						t.Fatal(err)
					}
					// Nix before 2.34 ends with 1 or 100 for a failed build.
					if (result.Status != 0) != (tc.wantStatus != 0) {
						t.Fatalf("status %d\n%s", result.Status, result.Stderr)
					}
					if !strings.Contains(result.Stderr, tc.wantLog) {
						t.Errorf("no %q in the log:\n%s", tc.wantLog, result.Stderr)
					}
					if lines := strings.Count(result.Stdout, "\n"); lines != tc.wantPaths {
						t.Errorf("%d paths, want %d:\n%s", lines, tc.wantPaths, result.Stdout)
					}
				})
			}
		})
	}
}

func TestGraphHasItsSize(t *testing.T) {
	lab := newLab(t)
	client, err := lab.StartClient(t.Context(), nixlab.ClientOptions{Name: "c"})
	if err != nil {
		t.Fatal(err)
	}
	result, err := client.Run(t.Context(), "sh", "-c", `nix-store --query --requisites "$(nix-instantiate --expr "$0")" | grep -c '\.drv$'`, nixlab.Graph("graph", 0))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint(nixlab.GraphSize); strings.TrimSpace(result.Stdout) != want {
		t.Errorf("the graph has %q derivations, want %s\n%s", result.Stdout, want, result.Stderr)
	}
}
