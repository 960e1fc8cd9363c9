// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/yaml"

	"nixbuilder.io/nix-builder-operator/controllers/machines"
)

// runMachines runs a manager with the machines controller alone until the end
// of the spec, as a user who has just the rights of config/rbac/role.yaml.
func runMachines(ctx SpecContext, user string) {
	GinkgoHelper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "config", "rbac", "role.yaml"))
	Expect(err).NotTo(HaveOccurred())
	role := &rbacv1.ClusterRole{}
	Expect(yaml.UnmarshalStrict(text, role)).To(Succeed())
	role.Name = user
	Expect(apiServer.Create(withTimeout(ctx), role)).To(Succeed())
	Expect(apiServer.Create(withTimeout(ctx), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	})).To(Succeed())
	restConfig, err := environment.User(user)
	Expect(err).NotTo(HaveOccurred())

	manager, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:     scheme,
		Cache:      cache.Options{ByObject: map[client.Object]cache.ByObject{&corev1.ConfigMap{}: machines.CacheOptions()}},
		Metrics:    server.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
		Logger:     GinkgoLogr,
	})
	Expect(err).NotTo(HaveOccurred())
	metrics, err := machines.NewMetrics(prometheus.NewRegistry())
	Expect(err).NotTo(HaveOccurred())
	Expect(machines.NewReconciler(machines.Options{
		Client: manager.GetClient(), Uncached: manager.GetAPIReader(),
		Recorder: manager.GetEventRecorder("nix-builder-operator"), Metrics: metrics,
	}).Register(manager)).To(Succeed())

	running, stop := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		defer GinkgoRecover()
		Expect(manager.Start(running)).To(Succeed())
	})
	DeferCleanup(func() {
		stop()
		wait.Wait()
	})
}

var _ = Describe("The machines controller in a manager, with the operator's rights", func() {
	// content gets a key of the ConfigMap, "" while there is none.
	content := func(namespace, key string) func(SpecContext) (string, error) {
		return func(ctx SpecContext) (string, error) {
			found := &corev1.ConfigMap{}
			err := apiServer.Get(withTimeout(ctx), machines.RequestFor(namespace).NamespacedName, found)
			return found.Data[key], client.IgnoreNotFound(err)
		}
	}

	It("follows NixBuilders and the ConfigMap", func(ctx SpecContext) {
		namespace, contested := newNamespace(ctx), newNamespace(ctx)
		runMachines(ctx, "machines-follower")
		one := create(ctx, ready(namespace, "one", 1).Obj())
		lines := content(namespace, machines.KeyMachines)
		Eventually(lines).WithContext(ctx).WithTimeout(patience).Should(ContainSubstring("@e0.one.nixbuilder "))

		By("listing another builder")
		two := create(ctx, ready(namespace, "two", 1).Obj())
		Eventually(lines).WithContext(ctx).WithTimeout(patience).Should(ContainSubstring("@e0.two.nixbuilder "))

		By("repairing what is edited, and what is deleted")
		found := published(ctx, namespace)
		want := found.Data[machines.KeyMachines]
		found.Data[machines.KeyMachines] = "ssh-ng://evil\n"
		Expect(apiServer.Update(withTimeout(ctx), found)).To(Succeed())
		Eventually(lines).WithContext(ctx).WithTimeout(patience).Should(Equal(want))
		Expect(apiServer.Delete(withTimeout(ctx), found)).To(Succeed())
		Eventually(lines).WithContext(ctx).WithTimeout(patience).Should(Equal(want))

		By("listing a builder again when its cordon ends")
		until := metav1.NewTime(time.Now().Add(4 * time.Second))
		patched := two.DeepCopy()
		patched.Spec.Cordon = ready(namespace, "two", 0).Cordon("for a moment", until.Time).Obj().Spec.Cordon
		Expect(apiServer.Patch(withTimeout(ctx), patched, client.MergeFrom(two))).To(Succeed())
		Eventually(lines).WithContext(ctx).WithTimeout(patience).ShouldNot(ContainSubstring("two"))
		Eventually(lines).WithContext(ctx).WithTimeout(patience).Should(ContainSubstring("two"))
		Expect(time.Now()).To(BeTemporally(">=", until.Truncate(time.Second)))

		By("saying that a ConfigMap is a user's")
		users := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: contested, Name: machines.ConfigMapName}}
		Expect(apiServer.Create(withTimeout(ctx), users)).To(Succeed())
		three := create(ctx, ready(contested, "three", 1).Obj())
		Eventually(func(g Gomega, ctx SpecContext) {
			var list eventsv1.EventList
			g.Expect(apiServer.List(withTimeout(ctx), &list, client.InNamespace(contested))).To(Succeed())
			g.Expect(list.Items).To(HaveLen(1))
			g.Expect(list.Items[0].Reason).To(Equal("ConfigMapConflict"))
			g.Expect(list.Items[0].Type).To(Equal(corev1.EventTypeWarning))
			g.Expect(list.Items[0].Regarding.UID).To(Equal(three.UID))
		}).WithContext(ctx).WithTimeout(patience).Should(Succeed())
		Expect(apiServer.Delete(withTimeout(ctx), users)).To(Succeed())
		Eventually(content(contested, machines.KeyMachines)).WithContext(ctx).WithTimeout(patience).Should(ContainSubstring("three"))

		By("deleting the ConfigMap with the last builder")
		Expect(apiServer.Delete(withTimeout(ctx), one)).To(Succeed())
		Eventually(lines).WithContext(ctx).WithTimeout(patience).ShouldNot(ContainSubstring("one"))
		Expect(apiServer.Delete(withTimeout(ctx), two)).To(Succeed())
		Eventually(lines).WithContext(ctx).WithTimeout(patience).Should(BeEmpty())
	})
})
