// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// Every version as a client of every version, over one dispatcher for each
// builder.
var _ = Describe("Every pair of versions", Ordered, func() {
	for _, builderVersion := range nixlab.Versions() {
		Context("builder with Nix "+string(builderVersion), Ordered, func() {
			var (
				builder    *nixlab.Builder
				dispatcher *dispatcher
			)
			BeforeAll(func(ctx context.Context) {
				builder = newBuilder(ctx, nixlab.BuilderOptions{Name: "pair-b" + slug(builderVersion), Version: builderVersion})
				dispatcher = newDispatcher(builder.MachinesLine(4))
			}, NodeTimeout(specTimeout))

			for _, clientVersion := range nixlab.Versions() {
				for _, daemon := range []bool{false, true} {
					describePair(&builder, &dispatcher, builderVersion, clientVersion, daemon)
				}
			}
		})
	}
})

// describePair is what has to work between a client and a builder. They exist
// only once specs run, hence the pointers.
func describePair(builder **nixlab.Builder, through **dispatcher, builderVersion, clientVersion nixlab.Version, daemon bool) {
	mode, name := "single-user", "pair-"+slug(builderVersion)+"-"+slug(clientVersion)
	if daemon {
		mode, name = "own daemon", name+"-d"
	}
	Context(fmt.Sprintf("client with Nix %s, %s", clientVersion, mode), Ordered, func() {
		var client *nixlab.Client
		BeforeAll(func(ctx context.Context) {
			client = newClient(ctx, *through, nixlab.ClientOptions{Name: name, Version: clientVersion, Daemon: daemon})
			_, err := client.Exec(ctx, "sh", "-c", "! command -v ssh && ! grep -rl 'PRIVATE KEY' /etc /root /home /run")
			Expect(err).NotTo(HaveOccurred(), "the client has ssh or a key")
		}, NodeTimeout(specTimeout))

		for _, inputs := range []int{0, 1, 100} {
			It(fmt.Sprintf("builds with %d inputs", inputs), func(ctx context.Context) {
				drv := fmt.Sprintf("%s-inputs%d", name, inputs)
				_, paths := mustBuild(ctx, client, nixlab.WithInputs(drv, inputs))
				Expect(paths).To(HaveExactElements(MatchRegexp(built(drv))))
				text, err := client.Exec(ctx, "cat", paths[0])
				Expect(err).NotTo(HaveOccurred())
				Expect(strings.Count(text, "\n")).To(Equal(inputs), "lines of the output")
				Expect((*builder).StorePaths()).To(ContainElement(MatchRegexp(built(drv))), "the builder did not build it")
			}, SpecTimeout(specTimeout))
		}

		It("shows the lines of the build log", func(ctx context.Context) {
			result, _ := mustBuild(ctx, client, nixlab.WithLog(name+"-log", "first words", "last words"))
			Expect(result.Stderr).To(And(ContainSubstring("first words"), ContainSubstring("last words")))
		}, SpecTimeout(specTimeout))

		It("fetches eight outputs", func(ctx context.Context) {
			_, paths := mustBuild(ctx, client, nixlab.WithOutputs(name+"-outputs", 8))
			Expect(paths).To(HaveLen(8))
			_, err := client.Exec(ctx, append([]string{"ls"}, paths...)...)
			Expect(err).NotTo(HaveOccurred())
		}, SpecTimeout(specTimeout))

		It("fails when the build fails, with its log and its status", func(ctx context.Context) {
			result, err := client.NixBuildExpr(ctx, nixlab.Failing(name+"-failing", "cannot go on", 7))
			Expect(err).NotTo(HaveOccurred())
			Expect(result.Status).NotTo(BeZero())
			Expect(result.Stderr).To(And(ContainSubstring("cannot go on"), ContainSubstring("(on builder "), MatchRegexp(`exit(ed)?( code|.*status)? .{0,20}7`)))
		}, SpecTimeout(specTimeout))

		It("builds a fixed output", func(ctx context.Context) {
			_, paths := mustBuild(ctx, client, nixlab.FixedOutput(name+"-fixed"))
			Expect(paths).To(HaveExactElements(MatchRegexp(built(name + "-fixed"))))
		}, SpecTimeout(specTimeout))
	})
}
