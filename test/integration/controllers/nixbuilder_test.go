// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/envtest"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

const (
	isTrue    = metav1.ConditionTrue
	isFalse   = metav1.ConditionFalse
	isUnknown = metav1.ConditionUnknown
)

var _ = Describe("The nixbuilder controller", func() {
	var h *harness
	BeforeEach(func(ctx SpecContext) { h = newHarness(ctx) })

	mac := func() *builders.NixBuilderWrapper {
		return builders.MakeNixBuilder("mac").Endpoint("mac-1", "mac-1.example.com").Endpoint("mac-2", "mac-2.example.com")
	}
	bothHealthy := func() {
		h.knows("mac", "mac-1", healthy(h.clock.Now(), builders.HostKey("mac-1.example.com")))
		h.knows("mac", "mac-2", healthy(h.clock.Now(), builders.HostKey("mac-2.example.com")))
	}

	It("tells the prober what to probe, and reports that nothing is known yet", func(ctx SpecContext) {
		h.create(ctx, mac().Features("kvm").MandatoryFeatures("benchmark").Systems("x86_64-linux"))
		builder, result := h.reconcile(ctx, "mac")

		Expect(builder).To(And(
			haveCondition(v1alpha1.ConditionAccepted, isTrue, "Accepted"),
			haveCondition(v1alpha1.ConditionCredentialsValid, isTrue, "CredentialsUsable"),
			haveCondition(v1alpha1.ConditionReachable, isUnknown, "NotProbed"),
			haveCondition(v1alpha1.ConditionReady, isUnknown, "NotProbed"),
		))
		Expect(builder.Status.ObservedGeneration).To(Equal(builder.Generation))
		Expect(builder.Status.Healthy).To(Equal("0/2"))
		Expect(result.RequeueAfter).To(Equal(time.Minute))

		targets := h.targets("mac")
		Expect(targets).To(HaveLen(2))
		Expect(targets[1]).To(And(
			HaveField("Endpoint", "mac-2"), HaveField("Host", "mac-2.example.com"), HaveField("Port", 22), HaveField("User", "nix"),
			HaveField("HostKeys", []string{builders.HostKey("mac-2.example.com")}), HaveField("TrustOnFirstUse", false),
			HaveField("Systems", []string{"x86_64-linux"}), HaveField("Features", []string{"benchmark", "kvm"}),
			HaveField("Discovery", true), HaveField("Interval", 30*time.Second), HaveField("Timeout", 10*time.Second),
			HaveField("FailureThreshold", 3), HaveField("Restored", BeNil()),
		))
		Expect(targets[1].Credentials).To(HaveExactElements(HaveField("Name", builders.DefaultSecret)))
	})

	It("follows the prober, with events on transitions only", func(ctx SpecContext) {
		h.create(ctx, mac())
		h.reconcile(ctx, "mac")
		Expect(h.events()).To(BeEmpty())

		bothHealthy()
		builder, _ := h.reconcile(ctx, "mac")
		Expect(builder).To(haveCondition(v1alpha1.ConditionReady, isTrue, "AllHealthy"))
		Expect(builder.Status).To(And(
			HaveField("Healthy", "2/2"), HaveField("Systems", "x86_64-linux"), HaveField("Jobs", int32(8)), HaveField("Nix", "2.34.8")))
		Expect(builder.Status.Endpoint("mac-1").Credential).To(Equal(builders.DefaultSecret))
		Expect(h.events()).To(ConsistOf(
			HavePrefix("Normal Healthy mac-1"), HavePrefix("Normal Healthy mac-2"), HavePrefix("Normal AllHealthy"),
		))

		message := "mac-2 (mac-2.example.com:22): connection refused"
		h.knows("mac", "mac-2", failed(h.clock.Now(), probe.StateSuspect, probe.StepReachable, probe.ReasonConnectionRefused, message))
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder).To(And(
			haveCondition(v1alpha1.ConditionReachable, isFalse, "ConnectionRefused"),
			haveCondition(v1alpha1.ConditionReady, isTrue, "Degraded")))
		Expect(builder.Status.Endpoint("mac-2")).To(And(
			HaveField("State", v1alpha1.EndpointSuspect), HaveField("Message", message), HaveField("NixVersion", "2.34.8"),
			HaveField("LastHealthyTime.Time", BeTemporally("==", h.clock.Now()))))
		Expect(h.events()).To(HaveExactElements(HavePrefix("Warning ConnectionRefused mac-2")))

		h.reconcile(ctx, "mac")
		Expect(h.events()).To(BeEmpty())

		for _, name := range []string{"mac-1", "mac-2"} {
			h.knows("mac", name, failed(h.clock.Now(), probe.StateUnhealthy, probe.StepReachable, probe.ReasonConnectionRefused, name+" (x): connection refused"))
		}
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder).To(haveCondition(v1alpha1.ConditionReady, isFalse, "ConnectionRefused"))
		Expect(builder.Status.Healthy).To(Equal("0/2"))
		Expect(h.events()).To(HaveLen(2))
	})

	It("writes nothing in steady state", func(ctx SpecContext) {
		h.create(ctx, mac())
		bothHealthy()
		h.knows("mac", "mac-2", failed(h.clock.Now(), probe.StateUnhealthy, probe.StepTrusted, probe.ReasonUserNotTrusted, "mac-2 (x): not trusted"))
		before, _ := h.reconcile(ctx, "mac")
		h.events()

		begin := time.Now()
		for range 100 {
			h.clock.SetTime(h.clock.Now().Add(time.Minute))
			after, _ := h.reconcile(ctx, "mac")
			Expect(after.ResourceVersion).To(Equal(before.ResourceVersion))
		}
		Expect(h.events()).To(BeEmpty())
		writes, err := environment.Writes()
		Expect(err).NotTo(HaveOccurred())
		for _, write := range writes {
			if write.Namespace == h.namespace {
				Expect(write.Time).To(BeTemporally("<", begin), "write %+v", write)
			}
		}
		Expect(envtest.CountWrites(writes, begin, time.Now())).NotTo(HaveKey(HaveField("Resource", "nixbuilders/status")))
	})

	It("starts from status after a restart, without writing", func(ctx SpecContext) {
		h.create(ctx, mac())
		bothHealthy()
		h.knows("mac", "mac-2", failed(h.clock.Now(), probe.StateUnhealthy, probe.StepTrusted, probe.ReasonUserNotTrusted, "mac-2 (x): not trusted"))
		before, _ := h.reconcile(ctx, "mac")

		h.prober.Forget(probe.Key{Namespace: h.namespace, Name: "mac"})
		h.reconciler = h.newReconciler(apiServer)
		h.clock.SetTime(h.clock.Now().Add(time.Hour))
		after, _ := h.reconcile(ctx, "mac")
		Expect(after.ResourceVersion).To(Equal(before.ResourceVersion))
		Expect(h.targets("mac")[0].Restored).To(HaveField("State", probe.StateHealthy))
		Expect(h.targets("mac")[1].Restored).To(And(
			HaveField("State", probe.StateUnhealthy), HaveField("Reason", probe.ReasonUserNotTrusted), HaveField("Message", "mac-2 (x): not trusted")))
	})

	It("gives a machine to the oldest builder that names it", func(ctx SpecContext) {
		h.create(ctx, builders.MakeNixBuilder("first").Endpoint("a", "a.example.com"))
		h.create(ctx, builders.MakeNixBuilder("second").EndpointWith(v1alpha1.Endpoint{
			Name: "b", Host: "b.example.com", HostKeys: []string{builders.HostKey("a.example.com") + " root@a"},
		}))
		first, _ := h.reconcile(ctx, "first")
		second, _ := h.reconcile(ctx, "second")
		Expect(first).To(haveCondition(v1alpha1.ConditionAccepted, isTrue, "Accepted"))
		Expect(second).To(And(
			haveCondition(v1alpha1.ConditionAccepted, isFalse, "DuplicateEndpoint"),
			haveCondition(v1alpha1.ConditionReachable, isUnknown, "NotAccepted"),
			haveCondition(v1alpha1.ConditionReady, isFalse, "DuplicateEndpoint")))
		Expect(second.Status.Condition(v1alpha1.ConditionAccepted).Message).To(ContainSubstring("endpoint a of NixBuilder first"))
		Expect(h.targets("second")).To(BeNil())
		Expect(h.events()).To(HaveExactElements(HavePrefix("Warning DuplicateEndpoint")))

		Expect(apiServer.Delete(ctx, first)).To(Succeed())
		h.reconcile(ctx, "first")
		Expect(h.targets("first")).To(BeNil())
		second, _ = h.reconcile(ctx, "second")
		Expect(second).To(haveCondition(v1alpha1.ConditionAccepted, isTrue, "Accepted"))
		Expect(h.targets("second")).To(HaveLen(1))
	})

	It("lets builders of different namespaces name one machine", func(ctx SpecContext) {
		other := newHarness(ctx)
		h.create(ctx, mac())
		other.create(ctx, mac())
		for _, one := range []*harness{h, other} {
			builder, _ := one.reconcile(ctx, "mac")
			Expect(builder).To(haveCondition(v1alpha1.ConditionAccepted, isTrue, "Accepted"))
		}
	})

	It("pins the host key seen first, and another one only by annotation", func(ctx SpecContext) {
		first, second := builders.HostKey("first"), builders.HostKey("second")
		h.create(ctx, builders.MakeNixBuilder("mac").Endpoint("mac-1", "mac-1.example.com").TrustOnFirstUse())
		h.reconcile(ctx, "mac")
		Expect(h.targets("mac")[0]).To(And(HaveField("TrustOnFirstUse", true), HaveField("PinnedHostKey", "")))

		h.knows("mac", "mac-1", healthy(h.clock.Now(), first))
		builder, _ := h.reconcile(ctx, "mac")
		Expect(builder.Status.Endpoints[0].HostKey).To(Equal(first))
		h.reconcile(ctx, "mac")
		Expect(h.targets("mac")[0].PinnedHostKey).To(Equal(first))
		Expect(h.events()).To(ContainElement(HavePrefix("Normal HostKeyPinned mac-1")))

		// Another key is not taken by itself.
		changed := failed(h.clock.Now(), probe.StateUnhealthy, probe.StepHostKeyVerified, probe.ReasonHostKeyChanged, "mac-1 (x): HOST KEY CHANGED")
		offered := facts(second)
		changed.Result.Facts = probe.Facts{OfferedHostKey: second, OfferedHostKeyFingerprint: offered.HostKeyFingerprint}
		h.knows("mac", "mac-1", changed)
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder).To(haveCondition(v1alpha1.ConditionHostKeyVerified, isFalse, "HostKeyChanged"))
		Expect(builder.Status.Endpoints[0].HostKey).To(Equal(first))
		Expect(h.events()).To(ContainElement(HavePrefix("Warning HostKeyChanged mac-1")))

		// A third key was accepted, but this is not it.
		annotate(ctx, builder, "mac-1="+facts(builders.HostKey("third")).HostKeyFingerprint)
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder.Status.Endpoints[0].HostKey).To(Equal(first))
		Expect(builder.Status.Condition(v1alpha1.ConditionHostKeyVerified).Message).To(HaveSuffix("is not the key seen"))

		annotate(ctx, builder, "mac-1="+offered.HostKeyFingerprint)
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder.Status.Endpoints[0].HostKey).To(Equal(second))
		Expect(h.targets("mac")[0].PinnedHostKey).To(Equal(second))
		Expect(h.events()).To(ContainElement(HavePrefix("Normal HostKeyReplaced mac-1")))

		// The annotation stays the user's, and does nothing more.
		h.knows("mac", "mac-1", healthy(h.clock.Now(), second))
		h.reconcile(ctx, "mac")
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder.Annotations).To(HaveKey(v1alpha1.AcceptHostKeyAnnotation))
		Expect(builder.Status.Endpoints[0].HostKey).To(Equal(second))
		Expect(h.targets("mac")[0].PinnedHostKey).To(Equal(second))
	})

	It("ends a cordon at its time", func(ctx SpecContext) {
		h.create(ctx, mac().Cordon("moving house", h.clock.Now().Add(40*time.Second)))
		bothHealthy()
		builder, result := h.reconcile(ctx, "mac")
		Expect(builder).To(And(
			haveCondition(v1alpha1.ConditionCordoned, isTrue, "Cordoned"),
			haveCondition(v1alpha1.ConditionReady, isFalse, "Cordoned")))
		Expect(builder.Status.Jobs).To(BeZero())
		Expect(result.RequeueAfter).To(Equal(40 * time.Second))
		Expect(h.targets("mac")).To(HaveLen(2), "cordoned machines are probed all the same")
		Expect(h.events()).To(ContainElement(HavePrefix("Normal Cordoned every endpoint: moving house")))

		h.clock.SetTime(h.clock.Now().Add(result.RequeueAfter))
		generation := builder.Generation
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder.Status.Condition(v1alpha1.ConditionCordoned)).To(BeNil())
		Expect(builder).To(haveCondition(v1alpha1.ConditionReady, isTrue, "AllHealthy"))
		Expect(builder.Generation).To(Equal(generation), "the spec is the user's")
		Expect(h.events()).To(ContainElement(HavePrefix("Normal Uncordoned")))

		By("merging another cordon into the one that is over, which keeps its end")
		patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"cordon":{"reason":"kernel update"}}}`))
		Expect(apiServer.Patch(ctx, builder, patch)).To(Succeed())
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder.Status.Condition(v1alpha1.ConditionCordoned)).To(BeNil())
		Expect(h.events()).To(HaveExactElements(HavePrefix("Warning CordonExpired spec.cordon: over already (until ")))
		h.reconcile(ctx, "mac")
		Expect(h.events()).To(BeEmpty())

		By("merging it in as the documentation says")
		patch = client.RawPatch(types.MergePatchType, []byte(`{"spec":{"cordon":{"reason":"kernel update","until":null}}}`))
		Expect(apiServer.Patch(ctx, builder, patch)).To(Succeed())
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder).To(haveCondition(v1alpha1.ConditionCordoned, isTrue, "Cordoned"))
	})

	It("forgets what is known of a machine that is replaced by another", func(ctx SpecContext) {
		builder := h.create(ctx, mac())
		bothHealthy()
		h.reconcile(ctx, "mac")
		h.prober.Forget(probe.Key{Namespace: h.namespace, Name: "mac"})
		Expect(apiServer.Get(ctx, client.ObjectKeyFromObject(builder), builder)).To(Succeed())
		builder.Spec.Endpoints[1].Host = "mac-3.example.com"
		Expect(apiServer.Update(ctx, builder)).To(Succeed())

		builder, _ = h.reconcile(ctx, "mac")
		Expect(h.targets("mac")[0].Restored).NotTo(BeNil())
		Expect(h.targets("mac")[1].Restored).To(BeNil())
		Expect(builder.Status.Endpoints[1]).To(And(
			HaveField("State", v1alpha1.EndpointUnknown), HaveField("NixVersion", ""), HaveField("Address", "mac-3.example.com:22")))
	})

	It("does not overwrite a status that it has not seen", func(ctx SpecContext) {
		h.create(ctx, mac())
		interfered := false
		h.reconciler = h.newReconciler(interceptor.NewClient(apiServer, interceptor.Funcs{
			SubResourcePatch: func(ctx context.Context, c client.Client, name string, object client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
				if !interfered {
					interfered = true
					other := &v1alpha1.NixBuilder{}
					Expect(c.Get(ctx, client.ObjectKeyFromObject(object), other)).To(Succeed())
					annotate(ctx, other, "mac-1=SHA256:x")
				}
				return c.SubResource(name).Patch(ctx, object, patch, opts...)
			},
		}))
		builder, result := h.reconcile(ctx, "mac")
		Expect(builder.Status.Conditions).To(BeEmpty())
		Expect(result.RequeueAfter).To(And(BeNumerically(">", 0), BeNumerically("<=", 5*time.Second)))
		Expect(h.events()).To(BeEmpty())

		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder.Status.Conditions).NotTo(BeEmpty())
	})

	It("ignores a builder that is gone", func(ctx SpecContext) {
		_, result := h.reconcile(ctx, "no-such-builder")
		Expect(result).To(Equal(ctrl.Result{}))
	})

	Describe("with credentials", func() {
		key, _ := sshtest.NewKeyFile(GinkgoTB())
		DescribeTable("that cannot be used", func(ctx SpecContext, reason, remedy string, change func(*corev1.Secret)) {
			secret := credential(h.namespace, "bad", key)
			change(secret)
			if reason != "SecretNotFound" {
				h.createSecret(ctx, secret)
			}
			h.create(ctx, mac().Secrets("bad"))
			builder, result := h.reconcile(ctx, "mac")
			Expect(builder).To(And(
				haveCondition(v1alpha1.ConditionCredentialsValid, isFalse, reason),
				haveCondition(v1alpha1.ConditionAuthenticated, isUnknown, "NoCredential"),
				haveCondition(v1alpha1.ConditionReady, isFalse, reason)))
			Expect(builder.Status.Condition(v1alpha1.ConditionCredentialsValid).Message).To(And(
				ContainSubstring("Secret bad"), ContainSubstring(remedy)))
			Expect(builder.Status.Endpoints[0]).To(And(
				HaveField("State", v1alpha1.EndpointUnhealthy), HaveField("FailedCondition", v1alpha1.ConditionCredentialsValid), HaveField("Reason", reason)))
			Expect(h.targets("mac")).To(BeNil())
			Expect(result.RequeueAfter).To(BeNumerically("<=", 10*time.Second))
			Expect(h.events()).To(HaveExactElements(HavePrefix("Warning " + reason)))
		},
			Entry("missing", "SecretNotFound", "kubectl -n ", func(*corev1.Secret) {}),
			Entry("of another type", "SecretWrongType", "--type=kubernetes.io/ssh-auth", func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }),
			Entry("not released", "SecretNotLabelled", "nixbuilder.io/credential=true", func(s *corev1.Secret) { s.Labels = nil }),
			Entry("released by another word", "SecretNotLabelled", "nixbuilder.io/credential=true", func(s *corev1.Secret) { s.Labels[v1alpha1.CredentialLabel] = "yes" }),
			Entry("with nothing in it", "PrivateKeyMalformed", "ssh-privatekey is not a private key", func(s *corev1.Secret) { s.Data[corev1.SSHAuthPrivateKey] = []byte("\n") }),
			Entry("with a passphrase", "PrivateKeyHasPassphrase", "ssh-keygen -p", func(s *corev1.Secret) {
				s.Data[corev1.SSHAuthPrivateKey] = sshtest.NewLockedKeyFile(GinkgoTB())
			}),
			Entry("malformed", "PrivateKeyMalformed", "not a private key", func(s *corev1.Secret) { s.Data[corev1.SSHAuthPrivateKey] = key[:len(key)/2] }),
			Entry("public instead of private", "PublicKeyInsteadOfPrivate", "without .pub", func(s *corev1.Secret) {
				s.Data[corev1.SSHAuthPrivateKey] = []byte(builders.HostKey("a"))
			}),
			Entry("with a certificate that is none", "CertificateMalformed", "ssh-privatekey-cert.pub", func(s *corev1.Secret) {
				s.Data[v1alpha1.CredentialCertificateKey] = []byte("nonsense")
			}),
		)

		It("goes on with those that can be used", func(ctx SpecContext) {
			h.create(ctx, mac().Secrets("missing", builders.DefaultSecret))
			bothHealthy()
			builder, _ := h.reconcile(ctx, "mac")
			Expect(builder).To(And(
				haveCondition(v1alpha1.ConditionCredentialsValid, isFalse, "SecretNotFound"),
				haveCondition(v1alpha1.ConditionReady, isTrue, "AllHealthy")))
			Expect(builder.Status.Condition(v1alpha1.ConditionCredentialsValid).Message).To(HaveSuffix("(1 of 2 Secrets)"))
			Expect(h.targets("mac")[0].Credentials).To(HaveExactElements(HaveField("Name", builders.DefaultSecret)))
		})

		It("notices that one was repaired or replaced", func(ctx SpecContext) {
			h.create(ctx, mac().Secrets("late"))
			h.reconcile(ctx, "mac")
			h.events()

			h.createSecret(ctx, credential(h.namespace, "late", key))
			builder, _ := h.reconcile(ctx, "mac")
			Expect(builder).To(haveCondition(v1alpha1.ConditionCredentialsValid, isTrue, "CredentialsUsable"))
			Expect(h.events()).To(HaveExactElements(HavePrefix("Normal CredentialsUsable")))
			Expect([]byte(h.targets("mac")[0].Credentials[0].PrivateKey)).To(Equal(key))

			other, _ := sshtest.NewKeyFile(GinkgoTB())
			Expect(apiServer.Update(ctx, credential(h.namespace, "late", other))).To(Succeed())
			h.reconcile(ctx, "mac")
			Expect([]byte(h.targets("mac")[0].Credentials[0].PrivateKey)).To(Equal(other))
		})
	})
})

// annotate sets the annotation that accepts a host key.
func annotate(ctx context.Context, builder *v1alpha1.NixBuilder, value string) {
	GinkgoHelper()
	changed := builder.DeepCopy()
	metav1.SetMetaDataAnnotation(&changed.ObjectMeta, v1alpha1.AcceptHostKeyAnnotation, value)
	Expect(apiServer.Patch(ctx, changed, client.MergeFrom(builder))).To(Succeed())
}
