// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	crd = `---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  annotations:
    controller-gen.kubebuilder.io/version: v0.0.0
  name: things.example.com
spec:
  description: a {{ brace }} and a }} brace
`
	wantCRD = `{{- /* Made by hack/chart from config/crd/bases/things.yaml: do not edit. */ -}}
{{- if .Values.crds.enabled }}
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  labels:
    {{- include "nix-builder-operator.labels" . | nindent 4 }}
  annotations:
    {{- if .Values.crds.keep }}
    helm.sh/resource-policy: keep
    {{- end }}
    controller-gen.kubebuilder.io/version: v0.0.0
  name: things.example.com
spec:
  description: a {{ "{{" }} brace }} and a }} brace
{{- end }}
`
	role = `---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: manager
rules:
- apiGroups:
  - ""
  resources:
  - secrets
  verbs:
  - get
`
	wantRules = `{{- /* Made by hack/chart from config/rbac/role.yaml: do not edit. */ -}}
{{- define "nix-builder-operator.managerRules" -}}
- apiGroups:
  - ""
  resources:
  - secrets
  verbs:
  - get
{{- end }}
`
)

func TestRun(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	crds := templatesDir + "/crds/"
	write(t, root, map[string]string{
		basesDir + "/things.yaml":           crd,
		rolePath:                            role,
		crds + "gone.yaml":                  "of a CRD that is no more",
		templatesDir + "/rbac/manager.yaml": "kept",
	})
	for range 2 { // the second run changes nothing
		if err := run(root); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			crds + "things.yaml":                wantCRD,
			templatesDir + "/rbac/manager.yaml": "kept",
			templatesDir + "/rbac/_rules.tpl":   wantRules,
		}
		if diff := cmp.Diff(want, read(t, root, "charts")); diff != "" {
			t.Errorf("chart (-want +got):\n%s", diff)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		crd, role string
		want      string
	}{
		"no CRD":             {role: role, want: "no CRDs in config/crd/bases"},
		"another kind":       {crd: role, role: role, want: "things.yaml: not a CRD"},
		"no annotations":     {crd: "\nkind: CustomResourceDefinition\nmetadata:\n  name: x\n", role: role, want: "does not begin with annotations"},
		"no role":            {crd: crd, want: "config/rbac/role.yaml"},
		"a Role":             {crd: crd, role: strings.Replace(role, "ClusterRole", "Role", 1), want: "not a single ClusterRole"},
		"no rules":           {crd: crd, role: strings.Split(role, "rules:")[0], want: "not a single ClusterRole with rules"},
		"unknown field":      {crd: crd, role: role + "extra: 1\n", want: `unknown field "extra"`},
		"URLs, not in Roles": {crd: crd, role: role + "- nonResourceURLs:\n  - /metrics\n  verbs:\n  - get\n", want: "cannot be part of a Role"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			files := map[string]string{templatesDir + "/rbac/manager.yaml": ""}
			if tc.crd != "" {
				files[basesDir+"/things.yaml"] = tc.crd
			}
			if tc.role != "" {
				files[rolePath] = tc.role
			}
			write(t, root, files)
			err := run(root)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// read returns the files below a directory of root by their names in root.
func read(t *testing.T, root, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		files[filepath.ToSlash(name)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
