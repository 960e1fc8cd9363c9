// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// Package is what the rules need of a `go list -json` record.
type Package struct {
	ImportPath string
	// Name is the identifier of the package clause.
	Name string
	// Standard tells a package of the standard library.
	Standard bool
	// Imports are those of non-test files.
	Imports []string
}

// Graph holds packages and all that they depend on, by import path.
type Graph map[string]Package

// Load lists the packages of the module that dir is in.
func Load(ctx context.Context, dir string) (Graph, error) {
	command := exec.CommandContext(ctx, "go", "list", "-deps", "-json=ImportPath,Name,Standard,Imports", "./...")
	command.Dir = dir
	var stderr bytes.Buffer
	command.Stderr = &stderr
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.String())
	}
	graph := Graph{}
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var p Package
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return graph, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		graph[p.ImportPath] = p
	}
}

// Check returns what breaks the rules, one message each, sorted.
func Check(graph Graph, rules []Rule) []string {
	var broken []string
	for _, p := range graph {
		if _, ours := relative(p.ImportPath); !ours {
			continue
		}
		broken = append(broken, checkNames(p)...)
		if !covered(p, rules) {
			broken = append(broken, fmt.Sprintf("%s: no import rule says what it may import; add one", short(p.ImportPath)))
		}
		for _, rule := range rules {
			if matchesAny(rule.Packages, p.ImportPath) {
				broken = append(broken, rule.direct(graph, p)...)
				broken = append(broken, rule.linked(graph, p)...)
			}
		}
		broken = append(broken, checkSiblings(p)...)
	}
	slices.Sort(broken)
	return broken
}

// covered tells whether a rule is about p in particular: one with a list of
// what is allowed or refused beyond the layers that hold for all packages.
func covered(p Package, rules []Rule) bool {
	for _, area := range []string{"test/...", "hack/..."} {
		if matches(area, p.ImportPath) {
			return true
		}
	}
	for _, rule := range rules {
		general := slices.Contains(rule.Packages, "internal/...")
		if !general && matchesAny(rule.Packages, p.ImportPath) {
			return true
		}
	}
	return false
}

// direct checks the imports of p itself.
func (r Rule) direct(graph Graph, p Package) []string {
	var broken []string
	for _, imported := range p.Imports {
		allowed := r.Allow == nil || graph[imported].Standard || matchesAny(r.Allow, imported)
		if !allowed || matchesAny(r.Deny, imported) {
			broken = append(broken, fmt.Sprintf("%s must not import %s: %s", short(p.ImportPath), short(imported), r.Reason))
		}
	}
	return broken
}

// linked checks all that a program with p in it contains.
func (r Rule) linked(graph Graph, p Package) []string {
	if r.Unreachable == nil && !r.StandardOnly {
		return nil
	}
	var broken []string
	from := map[string]string{p.ImportPath: ""}
	for queue := []string{p.ImportPath}; len(queue) > 0; queue = queue[1:] {
		current := queue[0]
		_, ours := relative(current)
		foreign := r.StandardOnly && !ours && !graph[current].Standard
		if foreign || matchesAny(r.Unreachable, current) {
			broken = append(broken, fmt.Sprintf("%s must not reach %s: %s (by %s)",
				short(p.ImportPath), short(current), r.Reason, chain(from, current)))
			continue // What follows from a breach is no news.
		}
		for _, imported := range graph[current].Imports {
			if _, seen := from[imported]; !seen {
				from[imported] = current
				queue = append(queue, imported)
			}
		}
	}
	return broken
}

func chain(from map[string]string, end string) string {
	var names []string
	for at := end; at != ""; at = from[at] {
		names = append(names, short(at))
	}
	slices.Reverse(names)
	return strings.Join(names, " → ")
}

// checkNames refuses names that say nothing about what is inside.
func checkNames(p Package) []string {
	rel, _ := relative(p.ImportPath)
	var broken []string
	if matches("pkg/...", p.ImportPath) {
		broken = append(broken, rel+": there is no pkg/: nothing here is a library for others")
	}
	if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "types"}, path.Base(rel)) {
		broken = append(broken, rel+": name a package after what it provides")
	}
	return broken
}

// checkSiblings keeps controllers/a from importing controllers/b.
func checkSiblings(p Package) []string {
	own, ok := controllerOf(p.ImportPath)
	if !ok {
		return nil
	}
	var broken []string
	for _, imported := range p.Imports {
		if other, ok := controllerOf(imported); ok && other != own {
			broken = append(broken, fmt.Sprintf("%s must not import %s: controllers meet only in the API server", short(p.ImportPath), short(imported)))
		}
	}
	return broken
}

func controllerOf(importPath string) (string, bool) {
	rel, ours := relative(importPath)
	rest, ok := strings.CutPrefix(rel, "controllers/")
	name, _, _ := strings.Cut(rest, "/")
	return name, ours && ok && name != "internal"
}

func matchesAny(patterns []string, importPath string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(pattern, importPath) })
}

// matches takes patterns relative to the module as well as full paths.
func matches(pattern, importPath string) bool {
	rel, ours := relative(importPath)
	if ours {
		importPath = rel
	}
	prefix, below := strings.CutSuffix(pattern, "/...")
	want, got := strings.Split(prefix, "/"), strings.Split(importPath, "/")
	if len(got) < len(want) || len(got) > len(want) && !below {
		return false
	}
	for i := range want {
		if want[i] != "*" && want[i] != got[i] {
			return false
		}
	}
	return true
}

func relative(importPath string) (string, bool) {
	if importPath == Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, Module+"/")
}

func short(importPath string) string {
	rel, _ := relative(importPath)
	return rel
}
