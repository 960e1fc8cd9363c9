// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// source is one place where apt looks for packages.
type source struct {
	uri        string
	suites     []string
	components []string
}

// debianMirror returns the address of the Debian archive this machine is set
// up with, taken from apt's configuration below dir (/etc/apt). Archives of
// security updates and of other vendors lack the suites the lab needs.
func debianMirror(dir string) (string, error) {
	sources, err := readSources(dir)
	if err != nil {
		return "", err
	}
	for _, s := range sources {
		path := strings.TrimRight(s.uri, "/")
		if strings.HasSuffix(path, "/debian") && slices.Contains(s.components, "main") {
			return s.uri, nil
		}
	}
	return "", fmt.Errorf("no Debian archive among apt's sources in %s: the Nix lab takes its packages from there", dir)
}

func readSources(dir string) ([]source, error) {
	var files []string
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"} {
		matches, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, matches...)
	}
	var sources []source
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("apt's sources: %w", err)
		}
		if strings.HasSuffix(file, ".sources") {
			sources = append(sources, parseStanzas(string(text))...)
		} else {
			sources = append(sources, parseLines(string(text))...)
		}
	}
	return sources, nil
}

// parseLines reads the one-line form: deb [options] URI SUITE COMPONENT…
func parseLines(text string) []source {
	var sources []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if rest, options, found := cutBrackets(line); found {
			line = rest + options
		}
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != "deb" {
			continue
		}
		sources = append(sources, source{uri: fields[1], suites: fields[2:3], components: fields[3:]})
	}
	return sources
}

// cutBrackets returns what stands before and after the bracketed options.
func cutBrackets(line string) (before, after string, found bool) {
	before, rest, found := strings.Cut(line, "[")
	if !found {
		return "", "", false
	}
	_, after, found = strings.Cut(rest, "]")
	return before, after, found
}

// parseStanzas reads the deb822 form: fields, and an empty line after each
// source.
func parseStanzas(text string) []source {
	var sources []source
	fields := map[string][]string{}
	last := ""
	finish := func() {
		enabled := len(fields["enabled"]) == 0 || fields["enabled"][0] != "no"
		if enabled && slices.Contains(fields["types"], "deb") {
			for _, uri := range fields["uris"] {
				sources = append(sources, source{uri: uri, suites: fields["suites"], components: fields["components"]})
			}
		}
		fields, last = map[string][]string{}, ""
	}
	scanner := bufio.NewScanner(strings.NewReader(text))
	for scanner.Scan() {
		line := scanner.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			finish()
		case line[0] == ' ' || line[0] == '\t':
			fields[last] = append(fields[last], strings.Fields(line)...)
		default:
			name, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(name)
			fields[last] = append(fields[last], strings.Fields(value)...)
		}
	}
	finish()
	return sources
}
