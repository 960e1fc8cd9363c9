// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package api

import (
	"os"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// Samples are what people begin with: the API server takes them, and knows
// every field in them.
var _ = Describe("Samples", func() {
	files, err := filepath.Glob(filepath.Join("..", "..", "..", "config", "samples", "*.yaml"))
	if err != nil || len(files) < 2 {
		panic("no samples: this test runs in the directory of its package")
	}
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		It(filepath.Base(file)+" is accepted", func(ctx SpecContext) {
			text, err := os.ReadFile(file)
			Expect(err).NotTo(HaveOccurred())
			sample := &unstructured.Unstructured{}
			Expect(yaml.UnmarshalStrict(text, &sample.Object)).To(Succeed())
			sample.SetNamespace(metav1.NamespaceDefault)
			strict := client.WithFieldValidation(apiServer, metav1.FieldValidationStrict)
			Expect(strict.Create(withTimeout(ctx), sample)).To(Succeed())
		})
	}
})
