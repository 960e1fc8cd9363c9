// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

var _ = Describe("Garbage collection", func() {
	for _, version := range nixlab.Versions() {
		It("on all builders between question and build goes unnoticed: Nix "+string(version), func(ctx context.Context) {
			var pair []*nixlab.Builder
			var lines []string
			for i := range 2 {
				b := newBuilder(ctx, nixlab.BuilderOptions{Name: fmt.Sprintf("gc-b%s-%d", slug(version), i), Version: version})
				pair, lines = append(pair, b), append(lines, b.MachinesLine(2))
			}
			d := newDispatcher(lines...)
			for round := range 3 {
				content := fmt.Sprintf("input %d", round)
				path := addEverywhere(ctx, content, pair...)
				client := d.speak(ctx, uint32(round+1))
				valid, err := client.QueryValidPaths(ctx, []string{path}, false, nil)
				Expect(err).NotTo(HaveOccurred())
				if len(valid) == 0 { // as if both had not answered in time
					continue
				}
				for _, b := range pair {
					_, err := b.Exec(ctx, "nix-store", "--gc")
					Expect(err).NotTo(HaveOccurred())
				}
				Expect(client.AddMultipleToStore(ctx, daemon.PathSource{}, nil)).To(Succeed())
				drvPath, drv := forged(fmt.Sprintf("gc%d", round), "cat $in > $out")
				drv.InputSources = []string{path}
				drv.Env = append(drv.Env, daemon.EnvVar{Name: "in", Value: path})
				result, err := client.BuildDerivation(ctx, drvPath, drv, daemon.BuildNormal, nil)
				Expect(err).NotTo(HaveOccurred())
				Expect(result.Status.Success()).To(BeTrue(), result.ErrorMessage)
				var nar bytes.Buffer
				_, err = client.NARFromPath(ctx, drv.Outputs[0].Path, &nar, nil)
				Expect(err).NotTo(HaveOccurred())
				Expect(nar.String()).To(ContainSubstring(content))
			}
		}, SpecTimeout(specTimeout))
	}
})

// addEverywhere adds a file to every builder's store and returns its path.
func addEverywhere(ctx context.Context, content string, builders ...*nixlab.Builder) string {
	GinkgoHelper()
	path := ""
	for _, b := range builders {
		Expect(b.WriteFile("/tmp/input", content, 0o644)).To(Succeed())
		added, err := b.Exec(ctx, "nix-store", "--add", "/tmp/input")
		Expect(err).NotTo(HaveOccurred())
		path = strings.TrimSpace(added)
	}
	return path
}
