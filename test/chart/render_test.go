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

const (
	root     = "../.."
	chartDir = root + "/charts/nix-builder-operator"

	// Names in the documentation and in config/.
	release   = "nix-builder-operator"
	namespace = "nix-builder-operator"
)

// tools are pinned in hack/tools; the first test that needs one builds it.
var tools = map[string]func() (string, error){
	"helm":      toolPath("helm"),
	"kustomize": toolPath("kustomize"),
}

func toolPath(name string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		script, err := filepath.Abs(filepath.Join(root, "hack", "tool.sh"))
		if err != nil {
			return "", err
		}
		out, err := exec.Command(script, "--path", name).Output()
		if err != nil {
			return "", fmt.Errorf("building %s failed: run `hack/tool.sh %s version` to see why: %w", name, name, err)
		}
		return strings.TrimSpace(string(out)), nil
	})
}

// run runs a tool.
func run(t *testing.T, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	path, err := tools[name]()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// valuesFile writes the text of a values file.
func valuesFile(t *testing.T, values string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(path, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// template renders the chart with the text of a values file.
func template(t *testing.T, values string, args ...string) objects {
	t.Helper()
	all := append([]string{"template", release, chartDir, "--namespace", namespace, "--values", valuesFile(t, values)}, args...)
	stdout, stderr, err := run(t, "helm", all...)
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, stderr)
	}
	return decode(t, stdout)
}

// kustomize renders a directory of config/.
func kustomize(t *testing.T, dir string) objects {
	t.Helper()
	stdout, stderr, err := run(t, "kustomize", "build", filepath.Join(root, "config", dir))
	if err != nil {
		t.Fatalf("kustomize build config/%s: %v\n%s", dir, err, stderr)
	}
	return decode(t, stdout)
}
