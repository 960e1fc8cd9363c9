// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

var _ = Describe("The status of a machine that comes and goes", func() {
	It("is written a few times at once, then at a pace, and for those who wait at any time", func(ctx SpecContext) {
		h := newHarness(ctx)
		builder := h.create(ctx, builders.MakeNixBuilder("linux").Endpoint("a", "a.example.com"))
		good := healthy(h.clock.Now(), builders.HostKey("a"))
		bad := failed(h.clock.Now(), probe.StateUnhealthy, probe.StepReachable, probe.ReasonConnectionRefused, "a (a.example.com:22): refused")
		flap := func(i int) time.Duration {
			h.knows("linux", "a", []probe.Snapshot{good, bad}[i%2])
			before := builder.ResourceVersion
			passed, result := h.reconcile(ctx, "linux")
			builder = passed
			if builder.ResourceVersion != before {
				return 0
			}
			return result.RequeueAfter
		}
		for i := range 10 {
			Expect(flap(i)).To(BeZero(), "change %d was not written", i)
		}
		Expect(flap(10)).To(Equal(4 * time.Second))
		Expect(builder.Status.Endpoints[0].State).To(Equal(v1alpha1.EndpointUnhealthy))
		told := len(h.events())

		By("writing the last one when its time has come")
		h.clock.SetTime(h.clock.Now().Add(4 * time.Second))
		Expect(flap(10)).To(BeZero())
		Expect(builder.Status.Endpoints[0].State).To(Equal(v1alpha1.EndpointHealthy))
		Expect(told).To(BeNumerically("<=", 20), "events of ten changes: of the machine, and of Ready")

		By("not having those wait who have changed the spec or asked for a probe")
		Expect(flap(11)).NotTo(BeZero())
		ask(ctx, builder, "now")
		bad.Requested, bad.RequestedResult = "now", bad.Result
		Expect(flap(11)).To(BeZero())
		Expect(builder.Status.LastProbe).To(HaveField("Request", "now"))
		builder.Spec.MaxJobs = 3
		Expect(apiServer.Update(withTimeout(ctx), builder)).To(Succeed())
		Expect(flap(12)).To(BeZero())
		Expect(builder.Status.ObservedGeneration).To(Equal(builder.Generation))
	})
})
