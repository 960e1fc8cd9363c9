// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"os"
	"syscall"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

var _ = Describe("A build that fails", Ordered, func() {
	var (
		pair []*nixlab.Builder
		d    *dispatcher
	)
	BeforeAll(func(ctx context.Context) {
		var lines []string
		for i, version := range []nixlab.Version{nixlab.Nix28, nixlab.Newest} {
			b := newBuilder(ctx, nixlab.BuilderOptions{Name: fmt.Sprintf("retry-b%d", i), Version: version})
			pair, lines = append(pair, b), append(lines, b.MachinesLine(2))
		}
		d = newDispatcher(lines...)
	}, NodeTimeout(specTimeout))

	for _, version := range nixlab.Versions() {
		It("runs once only, fixed outputs or not: client with Nix "+string(version), func(ctx context.Context) {
			client := newClient(ctx, d, nixlab.ClientOptions{Name: "retry-c" + slug(version), Version: version})
			for what, make := range map[string]func(name string) string{
				"fetch":    func(name string) string { return nixlab.FixedCommands(name, mark(name)+"; echo not found; exit 22") },
				"mismatch": func(name string) string { return nixlab.FixedCommands(name, mark(name)+"; printf other > $out") },
				"signal":   func(name string) string { return nixlab.FixedCommands(name, mark(name)+"; kill -9 $$") },
				"compile":  func(name string) string { return nixlab.Commands(name, mark(name)+"; echo syntax error; exit 1") },
				"nothing":  func(name string) string { return nixlab.Commands(name, mark(name)+"; echo no output") },
			} {
				// More than once, so that both builders have their turn.
				for i := range 2 {
					name := fmt.Sprintf("once-%s-%s-%d", what, slug(version), i)
					result, err := client.NixBuildExpr(ctx, make(name))
					Expect(err).NotTo(HaveOccurred())
					Expect(result.Status).NotTo(BeZero())
					Expect(result.Stderr).NotTo(ContainSubstring("rebuilding"))
					Expect(runs(ctx, name, pair...)).To(Equal(1), "%s ran more than once:\n%s", what, result.Stderr)
				}
			}
		}, SpecTimeout(specTimeout))
	}
})

var _ = Describe("A builder whose disk is full", func() {
	for _, version := range nixlab.Versions() {
		It("loses the build to another one: Nix "+string(version), func(ctx context.Context) {
			small := newBuilder(ctx, nixlab.BuilderOptions{Name: "small-b" + slug(version), Version: version, Store: smallDisk()})
			large := newBuilder(ctx, nixlab.BuilderOptions{Name: "large-b" + slug(version), Version: version})
			d := newDispatcher(small.MachinesLine(1))
			client := newClient(ctx, d, nixlab.ClientOptions{Name: "disk-c" + slug(version), Version: version})
			name := "disk-" + slug(version)
			gate := "/tmp/gate-" + name
			build := startBuild(ctx, client, nixlab.Commands(name, fmt.Sprintf(
				"%s; echo at the gate; until [ -e %s ]; do sleep 0.05; done; dd if=/dev/zero of=$out bs=1M count=64 || exit 1; echo done", mark(name), gate)))
			Eventually(build.output.String).WithTimeout(patience).Should(ContainSubstring("at the gate"))
			d.useList(small.MachinesLine(1) + "\n" + large.MachinesLine(1) + "\n")
			Expect(large.WriteFile(gate, "", 0o644)).To(Succeed())
			Expect(small.WriteFile(gate, "", 0o644)).To(Succeed())
			build.expectSuccess()
			Expect(build.output.String()).To(MatchRegexp("rebuilding on .*" + large.IP()))
			Expect(runs(ctx, name, small, large)).To(Equal(2))
		}, SpecTimeout(specTimeout))
	}
})

// smallDisk is a directory with room for a store that is nearly empty.
func smallDisk() string {
	GinkgoHelper()
	dir, err := os.MkdirTemp(lab.Dir(), "disk-")
	Expect(err).NotTo(HaveOccurred())
	Expect(syscall.Mount("disk", dir, "tmpfs", 0, "size=32m,mode=755")).To(Succeed())
	DeferCleanup(func() { Expect(syscall.Unmount(dir, syscall.MNT_DETACH)).To(Succeed()) })
	return dir
}
