// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
)

// thisMachine reads from /proc what the figures depend on.
func thisMachine() (figures.Machine, error) {
	m := figures.Machine{Cores: runtime.NumCPU()}
	memory, err := procField("/proc/meminfo", "MemTotal")
	if err != nil {
		return m, err
	}
	kib, err := strconv.Atoi(strings.TrimSuffix(memory, " kB"))
	if err != nil {
		return m, fmt.Errorf("/proc/meminfo: %w", err)
	}
	m.MemoryMiB = kib >> 10
	if m.CPU, err = procField("/proc/cpuinfo", "model name"); err != nil {
		m.CPU = runtime.GOARCH // other architectures do not name theirs
	}
	for path, field := range map[string]*string{
		"/proc/sys/kernel/osrelease":                &m.Kernel,
		"/proc/sys/net/ipv4/tcp_congestion_control": &m.Congestion,
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			return m, err
		}
		*field = strings.TrimSpace(string(text))
	}
	return m, nil
}

// procField returns the first value of a name in a file with lines "name : value".
func procField(path, name string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(text) {
		key, value, found := strings.Cut(string(line), ":")
		if found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s has no %q", path, name)
}

// loadAverage is that of the last minute.
func loadAverage() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	return strconv.ParseFloat(first, 64)
}

// measured are the paths in the repository that figures depend on.
var measured = []string{"cmd", "internal", "go.mod", "go.sum", "test/bench", "test/nixlab"}

// measuredCommit is the last commit of the repository in dir that changed what is
// measured or how; "-modified" is appended if something there is not committed.
func measuredCommit(ctx context.Context, dir string) (string, error) {
	commit, err := git(ctx, dir, append([]string{"log", "-1", "--format=%H", "--"}, measured...)...)
	if err != nil {
		return "", err
	}
	changes, err := git(ctx, dir, append([]string{"status", "--porcelain", "--"}, measured...)...)
	if err == nil && changes != "" {
		commit += "-modified"
	}
	return commit, err
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	output, err := exec.CommandContext(ctx, "git", append([]string{"-C", dir}, args...)...).Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(output)), nil
}

// buildPrograms builds what is measured into dir, the way it is shipped.
func buildPrograms(ctx context.Context, source, dir string) error {
	build := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", dir+string(filepath.Separator),
		"./cmd/nix-dispatcher", "./cmd/nix-dispatch-connect", "./test/bench/floorhelper")
	build.Dir = source
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, output)
	}
	return nil
}

const (
	placementUnit  = "placements/s"
	placementLimit = 5 * time.Minute
)

// placement runs the scheduler's benchmark, which reports placements per second.
func (r *run) placement(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, placementLimit, fmt.Errorf("not done after %v", placementLimit))
	defer cancel()
	command := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench=^BenchmarkPlacement$",
		fmt.Sprintf("-count=%d", r.rounds(loopback)), "./internal/scheduler")
	command.Dir = r.options.source
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, output)
	}
	rates, err := parseRates(output, placementUnit)
	for _, rate := range rates {
		r.say("%-20s %8.0f per second", "placements", rate)
		r.document.Series.Add("placements", figures.AnyNix, figures.Dispatcher, rate)
	}
	return err
}

// parseRates reads the values with a unit from the output of a Go benchmark.
func parseRates(output []byte, unit string) ([]float64, error) {
	var rates []float64
	for line := range bytes.Lines(output) {
		fields := strings.Fields(string(line))
		for i, field := range fields {
			if field != unit || i == 0 || !strings.HasPrefix(fields[0], "Benchmark") {
				continue
			}
			rate, err := strconv.ParseFloat(fields[i-1], 64)
			if err != nil {
				return nil, fmt.Errorf("output of the benchmark: %w", err)
			}
			rates = append(rates, rate)
		}
	}
	if len(rates) == 0 {
		return nil, fmt.Errorf("no benchmark reported %s:\n%s", unit, output)
	}
	return rates, nil
}
