// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/cluster"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// namespace makes one that enforces a Pod Security Standard and lasts until
// the end of the current node.
func namespace(ctx context.Context, name, standard string) string {
	GinkgoHelper()
	made := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{"pod-security.kubernetes.io/enforce": standard},
	}}
	Expect(api.Create(ctx, made)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) {
		Expect(client.IgnoreNotFound(api.Delete(ctx, made, client.GracePeriodSeconds(0)))).To(Succeed())
		Eventually(ctx, func() error { return api.Get(ctx, client.ObjectKeyFromObject(made), made) }).
			WithTimeout(patience).Should(MatchError(ContainSubstring("not found")))
	})
	Eventually(ctx, func() error {
		return api.Get(ctx, client.ObjectKey{Namespace: name, Name: "default"}, &corev1.ServiceAccount{})
	}).WithTimeout(patience).Should(Succeed())
	return name
}

// key gives a namespace the key of the builders, for use by the operator and
// by pods.
func key(ctx context.Context, namespace string) {
	GinkgoHelper()
	lab, err := kube.Lab()
	Expect(err).NotTo(HaveOccurred())
	text, err := os.ReadFile(lab.ClientKeyFile())
	Expect(err).NotTo(HaveOccurred())
	Expect(api.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "builder-key", Labels: map[string]string{"nixbuilder.io/credential": "true"}},
		Type:       corev1.SecretTypeSSHAuth,
		Data:       map[string][]byte{corev1.SSHAuthPrivateKey: text},
	})).To(Succeed())
}

// nixBuilder makes a builder known in a namespace, by its address or its name.
func nixBuilder(ctx context.Context, namespace string, b *cluster.Builder, host string) *v1alpha1.NixBuilder {
	GinkgoHelper()
	text := fmt.Sprintf(`
metadata: {namespace: %s, name: %s}
spec:
  user: %s
  systems: [%s]
  maxJobs: 4
  credentials: {secretRefs: [{name: builder-key}]}
  endpoints: [{name: %s, host: %s, hostKeys: [%q]}]
`, namespace, b.Name(), nixlab.TrustedUser, nixlab.System(), b.Name(), host, b.HostKey())
	made := &v1alpha1.NixBuilder{}
	Expect(yaml.UnmarshalStrict([]byte(text), made)).To(Succeed())
	Expect(api.Create(ctx, made)).To(Succeed())
	return made
}

// ready waits until every NixBuilder of a namespace is ready.
func ready(ctx context.Context, namespace string) {
	GinkgoHelper()
	kubectl(ctx, "wait", "--for=condition=Ready", "nixbuilders", "--all", "-n", namespace, "--timeout=60s")
}

// example reads a pod of the documentation, with nothing replaced but the name
// of the image with Nix.
func example(name, namespace string, nix cluster.ClientImage) *corev1.Pod {
	GinkgoHelper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "examples", name))
	Expect(err).NotTo(HaveOccurred())
	pod := &corev1.Pod{}
	Expect(yaml.UnmarshalStrict([]byte(strings.ReplaceAll(string(text), "nixos/nix:2.34.8", nix.Name())), pod)).To(Succeed())
	pod.Namespace = namespace
	for _, container := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		Expect(container.Image).To(BeElementOf(image, nix.Name()), "the image of "+container.Name)
	}
	return pod
}

// run creates a pod and waits until it has ended well.
func run(ctx context.Context, pod *corev1.Pod) string {
	GinkgoHelper()
	Expect(api.Create(ctx, pod)).To(Succeed())
	Expect(ended(ctx, pod)).To(Equal(corev1.PodSucceeded), func() string { return logs(ctx, pod) })
	return logs(ctx, pod)
}

// ended waits until a pod has ended.
func ended(ctx context.Context, pod *corev1.Pod) corev1.PodPhase {
	GinkgoHelper()
	phase(ctx, pod, corev1.PodSucceeded, corev1.PodFailed)
	return pod.Status.Phase
}

// phase waits until a pod is in one of the phases.
func phase(ctx context.Context, pod *corev1.Pod, wanted ...corev1.PodPhase) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		g.Expect(api.Get(ctx, client.ObjectKeyFromObject(pod), pod)).To(Succeed())
		g.Expect(pod.Status.Phase).To(BeElementOf(wanted))
	}).WithTimeout(4 * patience).WithPolling(pollInterval).Should(Succeed())
}

// logs returns what all containers of a pod wrote, each line with its
// container's name before it.
func logs(ctx context.Context, pod *corev1.Pod) string {
	GinkgoHelper()
	return kubectl(ctx, "logs", "-n", pod.Namespace, pod.Name, "--all-containers", "--prefix", "--tail=-1")
}
