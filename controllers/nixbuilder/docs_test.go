// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/probe"
)

const (
	referencePage = "docs/spec/v1alpha1/nixbuilder.md"
	reasonsBegin  = "<!-- begin reasons -->\n"
	reasonsEnd    = "<!-- end reasons -->\n"
)

// root is the module's directory, seen from this package's.
func root(elements ...string) string {
	return filepath.Join(append([]string{"..", ".."}, elements...)...)
}

// reasonTables renders the prober's catalogue as the reference page shows it.
func reasonTables() string {
	var text strings.Builder
	for _, step := range probe.Steps() {
		fmt.Fprintf(&text, "##### %s\n\n| Status | Reason | At once | Meaning |\n|---|---|---|---|\n", step)
		for _, entry := range probe.Catalogue() {
			if entry.Step != step {
				continue
			}
			atOnce := ""
			switch {
			case entry.AtOnce:
				atOnce = "yes"
			case entry.StaysInUse:
				atOnce = "stays in use"
			}
			fmt.Fprintf(&text, "| %s | `%s` | %s | %s |\n", entry.Status, entry.Reason, atOnce, entry.Meaning)
		}
		text.WriteString("\n")
	}
	return text.String()
}

// The reference page lists the reasons of probes as the prober knows them. With
// UPDATE_DOCS=1 in the environment the page is brought up to date.
func TestReferencePageListsReasonsOfProbes(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(root(referencePage))
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), reasonsBegin)
	listed, after, ok2 := strings.Cut(rest, reasonsEnd)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks %q and %q", referencePage, reasonsBegin, reasonsEnd)
	}
	want := "\n" + reasonTables()
	if listed == want {
		return
	}
	if os.Getenv("UPDATE_DOCS") != "" {
		if err := os.WriteFile(root(referencePage), []byte(before+reasonsBegin+want+reasonsEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("run this test with UPDATE_DOCS=1 (-page +catalogue):\n%s", cmp.Diff(strings.Split(listed, "\n"), strings.Split(want, "\n")))
}

// Every reason and condition type of the API has its place on the page.
func TestReferencePageListsConstantsOfTheAPI(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(root(referencePage))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(root("api", "v1alpha1", "conditions.go"))
	if err != nil {
		t.Fatal(err)
	}
	constants := regexp.MustCompile(`(Reason|Condition)\w+ += "(\w+)"`).FindAllStringSubmatch(string(source), -1)
	if len(constants) < 20 {
		t.Fatalf("found only %d constants", len(constants))
	}
	for _, constant := range constants {
		want := "`" + constant[2] + "`"
		if constant[1] == "Condition" {
			want = "# " + constant[2] + "\n"
		}
		if !strings.Contains(string(page), want) {
			t.Errorf("%s does not mention %s", referencePage, constant[2])
		}
	}
}

// A reason on the page that is none would be looked for in vain.
func TestReferencePageInventsNoReasons(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(root(referencePage))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(root("api", "v1alpha1", "conditions.go"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, constant := range regexp.MustCompile(`Reason\w+ += "(\w+)"`).FindAllStringSubmatch(string(source), -1) {
		known[constant[1]] = true
	}
	for _, entry := range probe.Catalogue() {
		known[string(entry.Reason)] = true
	}
	known[string(probe.ReasonNotReached)], known[string(probe.ReasonNotProbed)] = true, true
	for _, row := range regexp.MustCompile(`(?m)^\| (?:True|False|Unknown) \| ([^|]+) \|`).FindAllStringSubmatch(string(page), -1) {
		for _, name := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(row[1], -1) {
			if !known[name[1]] {
				t.Errorf("%s lists %s, which is no reason", referencePage, name[1])
			}
		}
	}
}

// Every field of the API is explained on the page.
func TestReferencePageListsFields(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(root(referencePage))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(root("api", "v1alpha1", "*_types.go"))
	if err != nil || len(files) < 2 {
		t.Fatalf("files with types %v, error %v", files, err)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range regexp.MustCompile(`json:"(\w+)[,"]`).FindAllStringSubmatch(string(source), -1) {
			name := field[1]
			if name == "metadata" || name == "items" || name == "spec" || name == "status" {
				continue
			}
			if !regexp.MustCompile("[`.]"+name+"[`.\\[]").Match(page) && !strings.Contains(string(page), name+": ") {
				t.Errorf("%s does not explain field %s", referencePage, name)
			}
		}
	}
}
