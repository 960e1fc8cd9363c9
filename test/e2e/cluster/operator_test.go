// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/test/cluster"
)

var _ = Describe("Operator", Ordered, ContinueOnFailure, func() {
	const release = "nix-builder-operator"
	var operator, team string

	BeforeAll(func(ctx SpecContext) {
		operator = namespace(ctx, "operator", "restricted")
		install(ctx, release, operator)
		team = namespace(ctx, "operator-team", "baseline")
		key(ctx, team)
		nixBuilder(ctx, team, older, older.IP())
		nixBuilder(ctx, team, newer, newer.Host())
		ready(ctx, team)
	})

	// leader returns the process that works: the name of its pod, and what tells
	// it from others that the same pod may have had.
	leader := func(ctx context.Context) string {
		GinkgoHelper()
		lease := &coordinationv1.Lease{}
		Expect(api.Get(ctx, client.ObjectKey{Namespace: operator, Name: "nix-builder-operator"}, lease)).To(Succeed())
		return ptr.Deref(lease.Spec.HolderIdentity, "")
	}

	// events lists what has been told about the team's builders.
	events := func(ctx context.Context) string {
		GinkgoHelper()
		return kubectl(ctx, "get", "events.events.k8s.io", "-n", team, "-o",
			`jsonpath={range .items[*]}{.regarding.kind}/{.regarding.name} {.reason} {.series.count}{"\n"}{end}`)
	}

	It("has another leader when the first is killed, which tells and writes nothing anew", func(ctx SpecContext) {
		// The last words about the builders' becoming ready may be yet to come.
		var before, told string
		Eventually(ctx, func() bool {
			version, list := machines(ctx, team).ResourceVersion, events(ctx)
			settled := version == before && list == told
			before, told = version, list
			return settled
		}).WithTimeout(patience).WithPolling(3 * time.Second).Should(BeTrue())
		first := leader(ctx)
		pod := &corev1.Pod{}
		name, _, _ := strings.Cut(first, "_")
		Expect(api.Get(ctx, client.ObjectKey{Namespace: operator, Name: name}, pod)).To(Succeed())
		began := time.Now()
		Expect(kube.SignalPod(string(pod.UID), "manager", syscall.SIGKILL)).To(Succeed())
		Eventually(ctx, func() string { return leader(ctx) }).WithTimeout(30 * time.Second).WithPolling(pollInterval).ShouldNot(Equal(first))
		figure("from the leader's death to another leader", time.Since(began))
		// Asked to look at every builder, it finds what the first has found.
		kubectl(ctx, "annotate", "nixbuilders", "--all", "-n", team, "nixbuilder.io/probe-requested-at="+began.Format(time.RFC3339))
		Eventually(ctx, func() string {
			return kubectl(ctx, "get", "nixbuilders", "-n", team, "-o", "jsonpath={.items[*].status.lastProbe}")
		}).WithTimeout(patience).WithPolling(pollInterval).Should(ContainSubstring(began.Format(time.RFC3339)))
		Expect(machines(ctx, team).ResourceVersion).To(Equal(before))
		Expect(events(ctx)).To(Equal(told))
	}, SpecTimeout(specTimeout))

	It("is not needed by builds, and neither is the API server", func(ctx SpecContext) {
		pod := example("dispatched-pod.yaml", team, clientImage)
		pod.Spec.Containers[0].Command = slow(fmt.Sprintf("lasting-%d", time.Now().UnixNano()), 90)
		Expect(api.Create(ctx, pod)).To(Succeed())
		Eventually(ctx, builds).WithTimeout(patience).WithPolling(pollInterval).Should(Equal(1))
		kubectl(ctx, "scale", "deployment", release, "-n", operator, "--replicas=0")
		kubectl(ctx, "wait", "--for=delete", "pods", "--all", "-n", operator, "--timeout=60s")
		Expect(kube.Node(1).SignalService(cluster.APIServer, syscall.SIGKILL)).To(Succeed())
		Eventually(ctx, builds).WithTimeout(2 * patience).WithPolling(time.Second).Should(BeZero())
		Expect(kube.Node(1).StartService(cluster.APIServer)).To(Succeed())
		Eventually(ctx, func() error {
			return api.Get(ctx, client.ObjectKeyFromObject(pod), pod)
		}).WithTimeout(patience).WithPolling(pollInterval).Should(Succeed())
		Expect(ended(ctx, pod)).To(Equal(corev1.PodSucceeded), func() string { return logs(ctx, pod) })
		kubectl(ctx, "scale", "deployment", release, "-n", operator, "--replicas=2")
		kubectl(ctx, "rollout", "status", "deployment", release, "-n", operator, "--timeout=3m") // the kubelet comes back late
	}, SpecTimeout(2*specTimeout))

	It("may read Secrets by name only, and users with the editor role nothing but NixBuilders", func(ctx SpecContext) {
		account := "system:serviceaccount:" + operator + ":" + release
		can := func(user string, args ...string) string {
			// The answer "no" comes with a failure.
			answer, _ := kube.Kubectl(ctx, append([]string{"auth", "can-i", "--as=" + user, "-n", team}, args...)...)
			return strings.TrimSpace(answer)
		}
		Expect(can(account, "get", "secrets")).To(Equal("yes"))
		for _, verb := range []string{"list", "watch", "create", "update", "patch", "delete"} {
			Expect(can(account, verb, "secrets")).To(Equal("no"), verb)
		}
		Expect(can(account, "delete", "nixbuilders")).To(Equal("no"))
		Expect(can(account, "get", "pods")).To(Equal("no"))
		kubectl(ctx, "create", "rolebinding", "editor", "-n", team, "--clusterrole="+release+"-edit", "--user=editor")
		for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete"} {
			Expect(can("editor", verb, "nixbuilders")).To(Equal("yes"), verb)
		}
		for _, kind := range []string{"secrets", "configmaps", "pods", "events"} {
			Expect(can("editor", "get", kind)).To(Equal("no"), kind)
		}
	}, SpecTimeout(specTimeout))

	It("makes no error of a namespace that is going", func(ctx SpecContext) {
		going := namespace(ctx, "operator-going", "baseline")
		key(ctx, going)
		nixBuilder(ctx, going, older, older.IP())
		ready(ctx, going)
		began := time.Now()
		kubectl(ctx, "delete", "namespace", going, "--timeout=60s")
		pods := &corev1.PodList{}
		Expect(api.List(ctx, pods, client.InNamespace(operator))).To(Succeed())
		for _, pod := range pods.Items {
			text := kubectl(ctx, "logs", "-n", operator, pod.Name, "--since-time="+began.UTC().Format(time.RFC3339))
			Expect(text).NotTo(ContainSubstring(`"level":"error"`))
		}
	}, SpecTimeout(specTimeout))

	It("takes the ConfigMap away with the last NixBuilder", func(ctx SpecContext) {
		kubectl(ctx, "delete", "nixbuilders", "--all", "-n", team)
		Eventually(ctx, func() error {
			return api.Get(ctx, client.ObjectKey{Namespace: team, Name: machinesName}, &corev1.ConfigMap{})
		}).WithTimeout(patience).WithPolling(pollInterval).Should(MatchError(ContainSubstring("not found")))
	}, SpecTimeout(specTimeout))
})
