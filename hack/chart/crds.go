// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	basesDir     = "config/crd/bases"
	templatesDir = "charts/nix-builder-operator/templates"

	generated = "{{- /* Made by hack/chart from %s: do not edit. */ -}}\n"
)

// copyCRDs writes one template for each CRD and removes all others.
func copyCRDs(root string) error {
	sources, err := filepath.Glob(filepath.Join(root, basesDir, "*.yaml"))
	if err != nil {
		return err
	}
	if len(sources) == 0 {
		return fmt.Errorf("no CRDs in %s: generate them first", basesDir)
	}
	target := filepath.Join(root, templatesDir, "crds")
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		name := filepath.Base(source)
		template, err := crdTemplate(basesDir+"/"+name, string(text))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(target, name), template, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// crdTemplate makes a template of a CRD as controller-gen prints it, with two
// blanks of indentation and annotations in metadata.
func crdTemplate(source, crd string) ([]byte, error) {
	const metadata, annotations = "\nmetadata:\n", "\nmetadata:\n  annotations:\n"
	if !strings.Contains(crd, "\nkind: CustomResourceDefinition\n") {
		return nil, errors.New("not a CRD")
	}
	head, tail, found := strings.Cut(escape(strings.TrimPrefix(crd, "---\n")), annotations)
	if !found {
		return nil, errors.New("its metadata does not begin with annotations, where the switch crds.keep belongs")
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, generated, source)
	out.WriteString("{{- if .Values.crds.enabled }}\n")
	out.WriteString(head + metadata)
	out.WriteString("  labels:\n    {{- include \"nix-builder-operator.labels\" . | nindent 4 }}\n")
	out.WriteString("  annotations:\n    {{- if .Values.crds.keep }}\n    helm.sh/resource-policy: keep\n    {{- end }}\n")
	out.WriteString(tail)
	out.WriteString("{{- end }}\n")
	return out.Bytes(), nil
}

// escape keeps braces of the text from being read as template actions.
func escape(text string) string {
	return strings.ReplaceAll(text, "{{", `{{ "{{" }}`)
}
