// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"os"
	"path/filepath"
	"testing"
)

const root = "../.."

var tools = NewTools(root)

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
	return templateAs(t, Release, values, args...)
}

// templateAs renders the chart under another release's name.
func templateAs(t *testing.T, release, values string, args ...string) objects {
	t.Helper()
	all := append([]string{"template", release, tools.Chart(), "--namespace", Namespace, "--values", valuesFile(t, values)}, args...)
	stdout, stderr, err := tools.Run(t, "helm", all...)
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, stderr)
	}
	return decode(t, stdout)
}

// kustomize renders a directory of config/.
func kustomize(t *testing.T, dir string) objects {
	t.Helper()
	stdout, stderr, err := tools.Run(t, "kustomize", "build", filepath.Join(root, "config", dir))
	if err != nil {
		t.Fatalf("kustomize build config/%s: %v\n%s", dir, err, stderr)
	}
	return decode(t, stdout)
}
