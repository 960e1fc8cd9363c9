// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

// A status that the API server refuses would leave the last one standing for
// ever, whatever happens to the machines.
var _ = Describe("A status", func() {
	It("is taken however much 64 machines say", func(ctx SpecContext) {
		const most = 64
		h := newHarness(ctx)
		long := func(n int) []string {
			var list []string
			for i := range n {
				list = append(list, fmt.Sprintf("%03d-%s", i, strings.Repeat("x", v1alpha1.MaxTextLength-4)))
			}
			return list
		}
		wrapper := builders.MakeNixBuilder("boasting").TrustOnFirstUse()
		var names []string
		for i := range most {
			names = append(names, fmt.Sprintf("%02d-%s", i, strings.Repeat("n", 60)))
			wrapper = wrapper.Endpoint(names[i], fmt.Sprintf("%sm%02d", strings.Repeat(strings.Repeat("h", 49)+".", 5), i))
		}
		h.create(ctx, wrapper)
		for i, name := range names {
			told := failed(h.clock.Now(), probe.StateSuspect, probe.StepTrusted, probe.ReasonUserNotTrusted,
				strings.Repeat("“", probe.MaxMessage))
			told.Result.Facts = probe.Facts{
				NixVersion: strings.Repeat("9", 100), ProtocolVersion: strings.Repeat("1", 100),
				Systems: long(100), Features: long(100), MaxJobs: 1 << 30,
				HostKey: "ssh-rsa " + strings.Repeat("A", v1alpha1.MaxHostKeyLength-10) + fmt.Sprintf("%02d", i), Credential: builders.DefaultSecret,
			}
			h.knows("boasting", name, told)
		}
		builder, _ := h.reconcile(ctx, "boasting")
		Expect(builder.Status.Endpoints).To(HaveLen(most))
		for i := range builder.Status.Endpoints {
			Expect(builder.Status.Endpoints[i].FailedCondition).To(Equal(v1alpha1.ConditionTrusted))
		}
	})
})
