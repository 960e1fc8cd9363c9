// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// Every version as a client of every version, whose builder dies with the build on
// it. What the build needs was built there, too.
var _ = Describe("Failover in every pair of versions", Ordered, func() {
	for _, builderVersion := range nixlab.Versions() {
		Context("builders with Nix "+string(builderVersion), Ordered, func() {
			var (
				pair       []*nixlab.Builder
				dispatcher *dispatcher
			)
			BeforeAll(func(ctx context.Context) {
				for i := range 2 {
					pair = append(pair, newBuilder(ctx, nixlab.BuilderOptions{Name: fmt.Sprintf("fail-b%s-%d", slug(builderVersion), i), Version: builderVersion}))
				}
				dispatcher = newDispatcher(pair[0].MachinesLine(1), pair[1].MachinesLine(1))
			}, NodeTimeout(specTimeout))

			for _, clientVersion := range nixlab.Versions() {
				It("rebuilds elsewhere for a client with Nix "+string(clientVersion), func(ctx context.Context) {
					name := "fail-" + slug(builderVersion) + "-" + slug(clientVersion)
					client := newClient(ctx, dispatcher, nixlab.ClientOptions{Name: name + "-c", Version: clientVersion})
					gate := "/tmp/" + name
					build := startBuild(ctx, client, nixlab.Gated(name, gate))
					dying, other := whichBuilds(build, pair[0], pair[1])
					Expect(mustList(other)).NotTo(ContainElement(MatchRegexp(built(name+"-needed"))), "the build is not where its input was made")
					Expect(other.WriteFile(gate, "", 0o644)).To(Succeed())
					began := time.Now()
					dying.Kill()
					build.expectSuccess()
					AddReportEntry("failover", fmt.Sprintf("builder Nix %s, client Nix %s: %v from the builder's end to that of the build", builderVersion, clientVersion, time.Since(began)))
					Expect(build.output.String()).To(MatchRegexp(`builder machines/%s\S* lost \(.*\): rebuilding on machines/%s`, dying.IP(), other.IP()))
					Expect(other.StorePaths()).To(ContainElements(MatchRegexp(built(name)), MatchRegexp(built(name+"-needed"))))
					Expect(dying.Restart(ctx)).To(Succeed())
				}, SpecTimeout(specTimeout))
			}
		})
	}
})

// whichBuilds waits until a gated build stands at its gate on one of two builders,
// and returns that one and the other.
func whichBuilds(build *running, one, two *nixlab.Builder) (at, other *nixlab.Builder) {
	GinkgoHelper()
	Eventually(build.output.String).WithTimeout(patience).Should(ContainSubstring("waiting at the gate"))
	Eventually(func(g Gomega) {
		first, err := one.BuildsRunning()
		g.Expect(err).NotTo(HaveOccurred())
		second, err := two.BuildsRunning()
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(first + second).To(Equal(1))
		at, other = one, two
		if second == 1 {
			at, other = two, one
		}
	}).WithTimeout(patience).Should(Succeed())
	return at, other
}
