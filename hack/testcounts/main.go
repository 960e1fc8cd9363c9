// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command testcounts sums up a `go test -json` log in one line, such as
// "12 passed, 0 failed, 1 skipped", and fails if a test did. Subtests count as
// tests, and so do the specs of a Ginkgo suite, by its summary; pending ones are
// skipped. A package that failed without a failed test (it does not compile,
// it timed out) counts as one failure.
//
// The flags add the results of checks that are no Go tests. A log that does
// not exist is a failure: the tests did not run.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
)

func main() {
	var total counts
	flag.IntVar(&total.passed, "passed", 0, "`number` of other checks that passed")
	flag.IntVar(&total.failed, "failed", 0, "`number` of other checks that failed")
	flag.Parse()
	for _, path := range flag.Args() {
		if err := total.addFile(path); err != nil {
			fmt.Fprintln(os.Stderr, "testcounts:", err)
			total.failed++
		}
	}
	fmt.Println(total)
	if total.failed > 0 {
		os.Exit(1)
	}
}

type counts struct {
	passed, failed, skipped int
}

// String is the line that the command prints.
func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}

// event is what matters of a line of the log; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output string
}

var (
	// specSummary ends the output of a Ginkgo suite.
	specSummary = regexp.MustCompile(`-- (\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped`)
	colour      = regexp.MustCompile("\x1b\\[[0-9;]*m")
)

func (c *counts) addFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := c.add(file); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (c *counts) add(log io.Reader) error {
	reader := bufio.NewReader(log)
	failedTests := map[string]int{}
	for {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		switch {
		case e.Action == "output":
			c.addSpecs(e.Output)
		case e.Test == "" && e.Action == "fail":
			if failedTests[e.Package] == 0 {
				c.failed++
			}
		case e.Test == "":
		case e.Action == "pass":
			c.passed++
		case e.Action == "skip":
			c.skipped++
		case e.Action == "fail":
			c.failed++
			failedTests[e.Package]++
		}
	}
}

func (c *counts) addSpecs(output string) {
	found := specSummary.FindStringSubmatch(colour.ReplaceAllString(output, ""))
	if found == nil {
		return
	}
	var numbers [4]int
	for i := range numbers {
		// Digits by the pattern; so many that they overflow count as none.
		numbers[i], _ = strconv.Atoi(found[i+1])
	}
	c.passed += numbers[0]
	c.failed += numbers[1]
	c.skipped += numbers[2] + numbers[3]
}
