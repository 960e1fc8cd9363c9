// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"context"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// ask sets the annotation that asks for a probe.
func ask(ctx context.Context, builder *v1alpha1.NixBuilder, value string) {
	GinkgoHelper()
	changed := builder.DeepCopy()
	changed.Annotations = map[string]string{v1alpha1.ProbeRequestAnnotation: value}
	Expect(apiServer.Patch(withTimeout(ctx), changed, client.MergeFrom(builder))).To(Succeed())
}

var _ = Describe("A request for a probe", func() {
	// answered is a snapshot that answers a request.
	answered := func(snapshot probe.Snapshot, request string, at time.Time) probe.Snapshot {
		snapshot.Requested, snapshot.RequestedResult = request, snapshot.Result
		snapshot.RequestedResult.Started, snapshot.RequestedResult.Duration = at, 1500*time.Millisecond
		for range snapshot.Result.Outcomes {
			snapshot.RequestedResult.Took = append(snapshot.RequestedResult.Took, 12*time.Millisecond)
		}
		return snapshot
	}
	two := func() *builders.NixBuilderWrapper {
		return builders.MakeNixBuilder("linux").Endpoint("a", "a.example.com").Endpoint("b", "b.example.com")
	}

	It("is answered once, when the last endpoint's result is in", func(ctx SpecContext) {
		h := newHarness(ctx)
		h.create(ctx, two())
		good := healthy(h.clock.Now(), builders.HostKey("a"))
		bad := failed(h.clock.Now(), probe.StateUnhealthy, probe.StepNixAvailable, probe.ReasonNixNotFound, "b (b.example.com:22): set spec.remoteProgram")
		h.knows("linux", "a", good)
		h.knows("linux", "b", bad)
		builder, _ := h.reconcile(ctx, "linux")
		Expect(builder.Status.LastProbe).To(BeNil())
		Expect(h.requests()).To(BeEmpty())

		ask(ctx, builder, "first")
		h.knows("linux", "a", answered(good, "first", h.clock.Now()))
		builder, _ = h.reconcile(ctx, "linux")
		Expect(h.requests()).To(Equal([]string{"first"}))
		Expect(builder.Status.LastProbe).To(BeNil(), "one endpoint's result is not in yet")

		h.knows("linux", "b", answered(bad, "first", h.clock.Now().Add(3*time.Second)))
		builder, _ = h.reconcile(ctx, "linux")
		last := builder.Status.LastProbe
		Expect(last).NotTo(BeNil())
		Expect(last.Request).To(Equal("first"))
		Expect(last.CompletionTime.Time).To(BeTemporally("==", h.clock.Now().Add(4*time.Second)), "not when the last step ended")
		Expect(last.Steps).To(HaveExactElements(
			And(HaveField("Type", v1alpha1.ConditionAccepted), HaveField("Status", isTrue)),
			And(HaveField("Type", v1alpha1.ConditionCredentialsValid), HaveField("Status", isTrue), HaveField("Reason", "CredentialsUsable")),
		))
		Expect(last.Endpoints).To(HaveLen(2))
		Expect(last.Endpoints[1].Name).To(Equal("b"))
		Expect(last.Endpoints[1].Steps).To(HaveLen(len(probe.Steps())))
		Expect(last.Endpoints[1].Steps[3]).To(Equal(v1alpha1.ProbedStep{
			Type: v1alpha1.ConditionNixAvailable, Status: isFalse, Reason: "NixDaemonNotFound",
			Message: "b (b.example.com:22): set spec.remoteProgram", DurationMilliseconds: 12,
		}))
		Expect(last.Endpoints[1].Steps[4]).To(And(HaveField("Status", isUnknown), HaveField("Reason", "NotReached")))

		By("leaving it as it is from then on, also after a restart")
		h.prober.requests = nil
		h.knows("linux", "b", healthy(h.clock.Now(), builders.HostKey("b")))
		restarted := h.newReconciler(apiServer)
		h.reconciler = restarted
		builder, _ = h.reconcile(ctx, "linux")
		Expect(builder.Status.LastProbe).To(Equal(last))
		Expect(h.requests()).To(BeEmpty(), "the same value has asked again")
		version := builder.ResourceVersion
		builder, _ = h.reconcile(ctx, "linux")
		Expect(builder.ResourceVersion).To(Equal(version))

		By("doing so again for another value, and for the first one after that")
		for _, value := range []string{"second", "first"} {
			ask(ctx, builder, value)
			for _, endpoint := range []string{"a", "b"} {
				h.knows("linux", endpoint, answered(good, value, h.clock.Now()))
			}
			builder, _ = h.reconcile(ctx, "linux")
			Expect(builder.Status.LastProbe.Request).To(Equal(value))
		}
	})

	DescribeTable("is answered at once where nothing can be probed", func(ctx SpecContext, wrapper *builders.NixBuilderWrapper, accepted, credentials string) {
		h := newHarness(ctx)
		h.create(ctx, builders.MakeNixBuilder("a-first").Endpoint("x", "taken.example.com"))
		builder := h.create(ctx, wrapper)
		ask(ctx, builder, "2026-01-02T03:04:05Z")
		builder, _ = h.reconcile(ctx, "linux")
		Expect(h.requests()).To(BeEmpty())
		last := builder.Status.LastProbe
		Expect(last).NotTo(BeNil())
		Expect(last.Endpoints).To(BeEmpty())
		Expect(last.Steps).To(HaveExactElements(
			And(HaveField("Type", v1alpha1.ConditionAccepted), HaveField("Reason", accepted)),
			And(HaveField("Type", v1alpha1.ConditionCredentialsValid), HaveField("Reason", credentials), HaveField("Message", Not(BeEmpty()))),
		))
		Expect(last.CompletionTime.Time).To(BeTemporally("==", h.clock.Now()))
	},
		Entry("because the spec is not accepted", two().Endpoint("c", "taken.example.com"), "DuplicateEndpoint", "NotAccepted"),
		Entry("because the Secret is missing", two().Secrets("missing"), "Accepted", "SecretNotFound"),
	)

	DescribeTable("works with any value", func(ctx SpecContext, value, want string) {
		h := newHarness(ctx)
		builder := h.create(ctx, builders.MakeNixBuilder("linux").Endpoint("a", "a.example.com"))
		ask(ctx, builder, value)
		h.knows("linux", "a", answered(healthy(h.clock.Now(), builders.HostKey("a")), want, h.clock.Now()))
		builder, _ = h.reconcile(ctx, "linux")
		Expect(h.requests()).To(Equal([]string{want}))
		Expect(builder.Status.LastProbe).To(HaveField("Request", want))
	},
		Entry("of 64 characters", strings.Repeat("x", 64), strings.Repeat("x", 64)),
		Entry("that is longer", strings.Repeat("x", 4096), strings.Repeat("x", 64)),
		Entry("that is longer, in another script", strings.Repeat("é", 100), strings.Repeat("é", 64)),
		Entry("of spaces", " ", " "),
		Entry("of control characters", "a\nb\x00\x1b[31m", "a\nb\x00\x1b[31m"),
		Entry("that is no time", "yesterday evening, about eight", "yesterday evening, about eight"),
	)

	It("for which Secrets are read again", func(ctx SpecContext) {
		h := newHarness(ctx)
		h.create(ctx, builders.MakeNixBuilder("linux").Endpoint("a", "a.example.com").Secrets("late"))
		builder, _ := h.reconcile(ctx, "linux")
		Expect(builder).To(haveCondition(v1alpha1.ConditionCredentialsValid, isFalse, "SecretNotFound"))
		key, _ := sshtest.NewKeyFile(GinkgoTB())
		h.createSecret(ctx, credential(h.namespace, "late", key))
		ask(ctx, builder, "now")
		h.reconcile(ctx, "linux")
		Expect(h.requests()).To(Equal([]string{"now"}))
		Expect(h.targets("linux")[0].Credentials).To(HaveLen(1))
	})
})
