// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

var _ = Describe("Secrets", func() {
	It("that may not be read are believed lost only after a while, if they could be before", func(ctx SpecContext) {
		forbidden := false
		h := newHarness(ctx)
		h.reconciler = h.newReconciler(forbidding(&forbidden))
		h.create(ctx, builders.MakeNixBuilder("mac").Endpoint("mac-1", "mac-1.example.com"))
		h.knows("mac", "mac-1", healthy(h.clock.Now(), builders.HostKey("mac-1.example.com")))
		h.reconcile(ctx, "mac")
		h.events()

		forbidden = true
		request := ctrl.Request{NamespacedName: client.ObjectKey{Namespace: h.namespace, Name: "mac"}}
		for range 2 {
			_, err := h.reconciler.Reconcile(ctx, request)
			Expect(err).To(MatchError(ContainSubstring("read Secret builder-key: not allowed")))
			h.clock.SetTime(h.clock.Now().Add(30 * time.Second))
		}
		Expect(h.targets("mac")).To(HaveLen(1), "machines are still probed")
		Expect(h.events()).To(BeEmpty())

		builder, _ := h.reconcile(ctx, "mac")
		Expect(builder).To(haveCondition(v1alpha1.ConditionCredentialsValid, isFalse, "SecretForbidden"))
		Expect(builder.Status.Condition(v1alpha1.ConditionCredentialsValid).Message).To(ContainSubstring("get on secrets in namespace " + h.namespace))
		Expect(h.events()).To(HaveExactElements(HavePrefix("Warning SecretForbidden")))

		forbidden = false
		builder, _ = h.reconcile(ctx, "mac")
		Expect(builder).To(haveCondition(v1alpha1.ConditionCredentialsValid, isTrue, "CredentialsUsable"))

		By("saying so at once where it never could")
		forbidden = true
		h.create(ctx, builders.MakeNixBuilder("new").Endpoint("a", "new.example.com"))
		builder, _ = h.reconcile(ctx, "new")
		Expect(builder).To(haveCondition(v1alpha1.ConditionCredentialsValid, isFalse, "SecretForbidden"))
	})
})

// forbidding is a client that may not read Secrets while *active.
func forbidding(active *bool) client.Client {
	return interceptor.NewClient(apiServer, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, opts ...client.GetOption) error {
			if _, ok := object.(*corev1.Secret); ok && *active {
				return apierrors.NewForbidden(corev1.Resource("secrets"), key.Name, nil)
			}
			return c.Get(ctx, key, object, opts...)
		},
	})
}
