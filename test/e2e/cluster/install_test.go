// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster_test

import (
	"context"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

const (
	pollInterval = 200 * time.Millisecond
	machinesName = "nix-machines"
)

// install installs the packaged chart and uninstalls it at the end of the
// current node, unless that has happened.
func install(ctx context.Context, release, namespace string, more ...string) {
	GinkgoHelper()
	began := time.Now()
	helm(ctx, append([]string{"install", release, chart, "--namespace", namespace, "--wait", "--timeout=2m"}, more...)...)
	figure("from helm install to Ready", time.Since(began))
	DeferCleanup(func(ctx SpecContext) {
		if strings.Contains(helm(ctx, "list", "--short", "--namespace", namespace), release) {
			helm(ctx, "uninstall", release, "--namespace", namespace, "--wait")
		}
		// It stays by itself, and says of which release it is.
		kubectl(ctx, "delete", "crd", "nixbuilders.nixbuilder.io", "--ignore-not-found")
	})
}

// machines reads the ConfigMap that the operator writes for the pods of a
// namespace.
func machines(ctx context.Context, namespace string) *corev1.ConfigMap {
	GinkgoHelper()
	found := &corev1.ConfigMap{}
	Expect(api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: machinesName}, found)).To(Succeed())
	return found
}

// remains lists what is in a namespace besides what Kubernetes puts into every
// one.
func remains(ctx context.Context, namespace string) string {
	GinkgoHelper()
	kinds := kubectl(ctx, "api-resources", "--verbs=list", "--namespaced", "-o", "name")
	kinds = strings.Join(strings.Fields(kinds), ",")
	found := kubectl(ctx, "get", kinds, "-n", namespace, "--no-headers", "--ignore-not-found", "--show-kind",
		"-o", "custom-columns=kind:.kind,name:.metadata.name")
	var left []string
	for line := range strings.Lines(found) {
		switch words := strings.Fields(line); {
		case words[0] == "Event", words[0] == "ServiceAccount" && words[1] == "default", words[1] == "kube-root-ca.crt":
		default:
			left = append(left, strings.Join(words, "/"))
		}
	}
	return strings.Join(left, " ")
}

// clusterWide lists the objects of a release that belong to no namespace.
func clusterWide(ctx context.Context, release string) string {
	GinkgoHelper()
	kinds := kubectl(ctx, "api-resources", "--verbs=list", "--namespaced=false", "-o", "name")
	kinds = strings.Join(strings.Fields(kinds), ",")
	return strings.TrimSpace(kubectl(ctx, "get", kinds, "-l", "app.kubernetes.io/instance="+release, "--ignore-not-found", "-o", "name"))
}

var _ = Describe("Install", Ordered, func() {
	const release = "nix-builder-operator"
	var operator, team string

	BeforeAll(func(ctx SpecContext) {
		operator = namespace(ctx, "install-operator", "restricted")
		team = namespace(ctx, "install-team", "restricted")
	})

	It("installs the packaged chart with default values where the restricted standard is enforced", func(ctx SpecContext) {
		began := time.Now()
		helm(ctx, "install", release, chart, "--namespace", operator, "--wait", "--timeout=2m")
		figure("from helm install to Ready", time.Since(began))
		deployment := &appsv1.Deployment{}
		Expect(api.Get(ctx, client.ObjectKey{Namespace: operator, Name: release}, deployment)).To(Succeed())
		Expect(deployment.Status.ReadyReplicas).To(BeEquivalentTo(2))
	}, SpecTimeout(specTimeout))

	It("finds real builders, by address and by name", func(ctx SpecContext) {
		key(ctx, team)
		began := time.Now()
		nixBuilder(ctx, team, older, older.IP())
		nixBuilder(ctx, team, newer, newer.Host())
		ready(ctx, team)
		figure("from NixBuilder to Ready", time.Since(began))
		Expect(machines(ctx, team).Data["builders.json"]).To(ContainSubstring(newer.Host()))
	}, SpecTimeout(specTimeout))

	It("upgrades to changed values", func(ctx SpecContext) {
		helm(ctx, "upgrade", release, chart, "--namespace", operator, "--wait", "--timeout=2m", "--set", "replicas=1,log.level=debug")
		deployment := &appsv1.Deployment{}
		Expect(api.Get(ctx, client.ObjectKey{Namespace: operator, Name: release}, deployment)).To(Succeed())
		Expect(deployment.Status.ReadyReplicas).To(BeEquivalentTo(1))
		Expect(deployment.Spec.Template.Spec.Containers[0].Args).To(ContainElement("--log-level=debug"))
		ready(ctx, team)
	}, SpecTimeout(specTimeout))

	It("leaves CRDs, NixBuilders and their ConfigMaps when uninstalled, and nothing else", func(ctx SpecContext) {
		before := machines(ctx, team)
		helm(ctx, "uninstall", release, "--namespace", operator, "--wait")
		Eventually(ctx, func() string { return remains(ctx, operator) }).WithTimeout(patience).WithPolling(pollInterval).Should(BeEmpty())
		Expect(clusterWide(ctx, release)).To(Equal("customresourcedefinition.apiextensions.k8s.io/nixbuilders.nixbuilder.io"))
		found := &v1alpha1.NixBuilderList{}
		Expect(api.List(ctx, found, client.InNamespace(team))).To(Succeed())
		Expect(found.Items).To(HaveLen(2))
		Expect(machines(ctx, team).Data).To(Equal(before.Data))
	}, SpecTimeout(specTimeout))

	It("takes them over under another release name", func(ctx SpecContext) {
		// The CRD still says which release it is of, so Helm has to be told.
		install(ctx, "another", operator, "--take-ownership")
		ready(ctx, team)
		Expect(api.Delete(ctx, &v1alpha1.NixBuilder{ObjectMeta: objectMeta(team, newer.Name())})).To(Succeed())
		Eventually(ctx, func() string {
			return machines(ctx, team).Data["builders.json"]
		}).WithTimeout(patience).WithPolling(pollInterval).ShouldNot(ContainSubstring(newer.Host()))
	}, SpecTimeout(specTimeout))

	It("works with Roles alone for the namespaces it is to watch", func(ctx SpecContext) {
		watched := namespace(ctx, "install-watched", "restricted")
		install(ctx, release, operator, "--set", "watchNamespaces={"+watched+"}")
		Expect(kubectl(ctx, "get", "clusterroles", "-l", "app.kubernetes.io/instance="+release, "-o", "jsonpath={.items[*].aggregationRule}")).To(BeEmpty())
		Expect(kubectl(ctx, "get", "clusterrolebindings", "-l", "app.kubernetes.io/instance="+release, "-o", "name")).To(BeEmpty())
		for _, name := range []string{watched, "install-unwatched"} {
			if name != watched {
				namespace(ctx, name, "restricted")
			}
			key(ctx, name)
			nixBuilder(ctx, name, older, older.Host())
		}
		ready(ctx, watched)
		Consistently(ctx, func() string {
			return kubectl(ctx, "get", "nixbuilders", "-n", "install-unwatched", "-o", "jsonpath={.items[*].status}")
		}).WithTimeout(2 * time.Second).Should(BeEmpty())
	}, SpecTimeout(specTimeout))
})
