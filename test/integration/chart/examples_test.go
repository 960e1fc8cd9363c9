// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"os"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("The examples", func() {
	paths, err := filepath.Glob(root + "/docs/examples/*.yaml")
	if err != nil || len(paths) == 0 {
		panic("docs/examples has no examples")
	}
	for _, path := range paths {
		It("are accepted as they are: "+filepath.Base(path), func(ctx SpecContext) {
			ensureNamespace(ctx, "clients", "baseline")
			text, err := os.ReadFile(path)
			Expect(err).NotTo(HaveOccurred())
			apply(string(text), "--dry-run=server", "--validate=strict", "--namespace=clients")
		})
	}
})
