// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Names that the documentation and config/ use for an install.
const (
	Release   = "nix-builder-operator"
	Namespace = "nix-builder-operator"
)

// Tools runs the tools that hack/tools pins. It is safe for concurrent use.
type Tools struct {
	root string

	mu    sync.Mutex
	paths map[string]string
}

// NewTools returns the tools of the source tree at root.
func NewTools(root string) *Tools {
	return &Tools{root: root, paths: map[string]string{}}
}

// Chart is the directory of the chart.
func (x *Tools) Chart() string { return filepath.Join(x.root, "charts", "nix-builder-operator") }

// Run runs a tool, which is built if it is not in Go's cache, and returns what
// it printed.
func (x *Tools) Run(tb testing.TB, name string, args ...string) (stdout, stderr string, err error) {
	tb.Helper()
	path, err := x.path(name)
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	// Helm finds no plugins and repositories of whoever runs the tests. The
	// directory is not tb's, because Run may be called in a cleanup.
	home, err := os.MkdirTemp("", "helm-")
	if err != nil {
		tb.Fatal(err)
	}
	defer os.RemoveAll(home)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// path asks for a tool once: whether it is current takes Go some seconds.
func (x *Tools) path(name string) (string, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if path, found := x.paths[name]; found {
		return path, nil
	}
	script, err := filepath.Abs(filepath.Join(x.root, "hack", "tool.sh"))
	if err != nil {
		return "", err
	}
	out, err := exec.Command(script, "--path", name).Output()
	if err != nil {
		return "", fmt.Errorf("building %s failed: run `hack/tool.sh %s version` to see why: %w", name, name, err)
	}
	x.paths[name] = strings.TrimSpace(string(out))
	return x.paths[name], nil
}
