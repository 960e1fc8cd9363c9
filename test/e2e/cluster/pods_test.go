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
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/test/cluster"
)

func objectMeta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

// slow is a build of its own that sleeps so many seconds on a builder.
func slow(name string, seconds int) []string {
	expression := fmt.Sprintf(`derivation { name = "%s"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin"; args = [ "-c" "sleep %d; echo done > $out; exit $?" ]; }`, name, seconds)
	return []string{"nix-build", "--no-out-link", "--expr", expression}
}

// withStore gives the container that builds a store of its own that every
// user may write to: that of the image is root's.
func withStore(pod *corev1.Pod) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "nix", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	for i := range pod.Spec.Containers {
		pod.Spec.Containers[i].VolumeMounts = append(pod.Spec.Containers[i].VolumeMounts, corev1.VolumeMount{Name: "nix", MountPath: "/nix"})
	}
}

var _ = Describe("Pods", Ordered, ContinueOnFailure, func() {
	var operator, team string

	BeforeAll(func(ctx SpecContext) {
		operator = namespace(ctx, "pods-operator", "restricted")
		install(ctx, "nix-builder-operator", operator)
		team = namespace(ctx, "pods-team", "baseline")
		key(ctx, team)
		nixBuilder(ctx, team, older, older.IP())
		nixBuilder(ctx, team, newer, newer.Host())
		ready(ctx, team)
	})

	AfterEach(func(ctx SpecContext) {
		kubectl(ctx, "delete", "pods,jobs", "--all", "-n", team, "--grace-period=1")
	})

	It("build with stock Nix, ssh and a key, as in the example", func(ctx SpecContext) {
		text := run(ctx, example("direct-pod.yaml", team, sshImage))
		Expect(text).To(MatchRegexp(`building '/nix/store/.*-hello.drv' on 'ssh-ng://`))
		Expect(text).To(MatchRegexp(`(?m)/nix/store/\S+-hello$`))
	}, SpecTimeout(specTimeout))

	Context("with a dispatcher, as in the example", func() {
		check := func(text string) {
			GinkgoHelper()
			Expect(text).To(MatchRegexp(`\[pod/nix-build/build\] building on (older|newer)/`))
			Expect(text).To(MatchRegexp(`(?m)/nix/store/\S+-hello$`))
			Expect(strings.Count(text, "msg=Built")).To(Equal(3), text)
		}

		It("build as root, with neither ssh nor a key", func(ctx SpecContext) {
			pod := example("dispatched-pod.yaml", team, clientImage)
			for _, mount := range pod.Spec.Containers[0].VolumeMounts {
				Expect(mount.Name).To(Equal("nix-dispatch"))
				Expect(mount.ReadOnly).To(BeTrue())
			}
			check(run(ctx, pod))
		}, SpecTimeout(specTimeout))

		It("build as root without capabilities", func(ctx SpecContext) {
			pod := example("dispatched-pod.yaml", team, clientImage)
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
				AllowPrivilegeEscalation: ptr.To(false),
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}
			check(run(ctx, pod))
		}, SpecTimeout(specTimeout))

		It("build as another user without fsGroup", func(ctx SpecContext) {
			pod := example("dispatched-pod.yaml", team, clientImage)
			withStore(pod)
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
				RunAsUser: ptr.To(int64(1000)), RunAsGroup: ptr.To(int64(1000)), RunAsNonRoot: ptr.To(true),
				AllowPrivilegeEscalation: ptr.To(false),
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			}
			pod.Spec.Containers[0].WorkingDir = "/home/user"
			check(run(ctx, pod))
		}, SpecTimeout(specTimeout))

		It("build through a nix-daemon of their own", func(ctx SpecContext) {
			pod := example("dispatched-pod.yaml", team, clientImage)
			daemon := *pod.Spec.Containers[0].DeepCopy()
			daemon.Name, daemon.RestartPolicy = "nix-daemon", ptr.To(corev1.ContainerRestartPolicyAlways)
			daemon.Command = []string{"bash", "-c", "mkdir -p /nix/var/nix/daemon-socket && NIX_REMOTE=local exec nix-daemon"}
			daemon.StartupProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
				Exec: &corev1.ExecAction{Command: []string{"test", "-S", "/nix/var/nix/daemon-socket/socket"}},
			}}
			withStore(pod)
			daemon.VolumeMounts = append(daemon.VolumeMounts, corev1.VolumeMount{Name: "nix", MountPath: "/nix"})
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, daemon)
			build := &pod.Spec.Containers[0]
			build.Env = []corev1.EnvVar{{Name: "NIX_REMOTE", Value: "daemon"}}
			build.WorkingDir = "/home/user"
			build.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr.To(int64(1000)), RunAsGroup: ptr.To(int64(1000))}
			build.VolumeMounts = []corev1.VolumeMount{{Name: "nix", MountPath: "/nix"}}
			check(run(ctx, pod))
		}, SpecTimeout(specTimeout))
	})

	It("end as Jobs do when their build ends, although the dispatcher runs on", func(ctx SpecContext) {
		pod := example("dispatched-pod.yaml", team, clientImage)
		job := &batchv1.Job{ObjectMeta: objectMeta(team, "build"), Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: pod.Spec}}}
		Expect(api.Create(ctx, job)).To(Succeed())
		kubectl(ctx, "wait", "--for=condition=Complete", "job/build", "-n", team, "--timeout=60s")
	}, SpecTimeout(specTimeout))

	DescribeTable("that vanish in mid-build leave no build behind", func(ctx SpecContext, remove func(context.Context, *corev1.Pod)) {
		pod := example("dispatched-pod.yaml", team, clientImage)
		pod.Spec.Containers[0].Command = slow(fmt.Sprintf("vanishing-%d", time.Now().UnixNano()), 600)
		Expect(api.Create(ctx, pod)).To(Succeed())
		Eventually(ctx, builds).WithTimeout(patience).WithPolling(pollInterval).Should(Equal(1))
		began := time.Now()
		remove(ctx, pod)
		Eventually(ctx, builds).WithTimeout(patience).WithPolling(pollInterval).Should(BeZero())
		figure("from a pod's removal to the end of its build", time.Since(began))
	},
		Entry("deleted", SpecTimeout(specTimeout), func(ctx context.Context, pod *corev1.Pod) {
			kubectl(ctx, "delete", "pod", pod.Name, "-n", pod.Namespace, "--wait=false")
		}),
		Entry("deleted by force", SpecTimeout(specTimeout), func(ctx context.Context, pod *corev1.Pod) {
			kubectl(ctx, "delete", "pod", pod.Name, "-n", pod.Namespace, "--force", "--grace-period=0")
		}),
	)

	It("go on building after their dispatcher has crashed in mid-build", func(ctx SpecContext) {
		pod := example("dispatched-pod.yaml", team, clientImage)
		name := fmt.Sprintf("crash-%d", time.Now().UnixNano())
		script := `"$@"; echo "first ended with $?"; for i in $(seq 30); do nix-build --no-out-link '<nixpkgs>' -A hello && exit; sleep 1; done; exit 1`
		pod.Spec.Containers[0].Command = append([]string{"bash", "-c", script, "build"}, slow(name, 600)...)
		Expect(api.Create(ctx, pod)).To(Succeed())
		Eventually(ctx, builds).WithTimeout(patience).WithPolling(pollInterval).Should(Equal(1))
		Expect(kube.SignalPod(string(pod.UID), "nix-dispatcher", syscall.SIGKILL)).To(Succeed())
		Expect(ended(ctx, pod)).To(Equal(corev1.PodSucceeded), func() string { return logs(ctx, pod) })
		text := logs(ctx, pod)
		Expect(text).To(MatchRegexp(`first ended with [1-9]`))
		Expect(text).To(MatchRegexp(`(?m)/nix/store/\S+-hello$`))
		Eventually(ctx, builds).WithTimeout(patience).WithPolling(pollInterval).Should(BeZero())
	}, SpecTimeout(specTimeout))

	It("see a new builder without a restart, and build there", func(ctx SpecContext) {
		another := namespace(ctx, "pods-growing", "baseline")
		key(ctx, another)
		nixBuilder(ctx, another, older, older.Host())
		ready(ctx, another)
		pod := example("dispatched-pod.yaml", another, clientImage)
		pod.Spec.Containers[0].Command = []string{"sleep", "infinity"}
		pod.Spec.TerminationGracePeriodSeconds = ptr.To(int64(1))
		Expect(api.Create(ctx, pod)).To(Succeed())
		phase(ctx, pod, corev1.PodRunning)
		Eventually(ctx, func() string { return logs(ctx, pod) }).WithTimeout(patience).Should(ContainSubstring("endpoints=1"))
		nixBuilder(ctx, another, newer, newer.Host())
		began := time.Now()
		ready(ctx, another)
		Eventually(ctx, func() string { return logs(ctx, pod) }).WithTimeout(3 * patience).WithPolling(pollInterval).Should(ContainSubstring("endpoints=2"))
		figure("from NixBuilder to usable in a running pod", time.Since(began))
		Expect(api.Delete(ctx, pod, client.GracePeriodSeconds(1))).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("lose no build when thirty of them start at once", func(ctx SpecContext) {
		began := time.Now()
		var pods []*corev1.Pod
		for i := range 30 {
			pod := example("dispatched-pod.yaml", team, clientImage)
			pod.Name = fmt.Sprintf("crowd-%d", i)
			pod.Spec.Containers[0].Command = slow(fmt.Sprintf("crowd-%d-%d", i, began.UnixNano()), 1)
			Expect(api.Create(ctx, pod)).To(Succeed())
			pods = append(pods, pod)
		}
		for _, pod := range pods {
			Expect(ended(ctx, pod)).To(Equal(corev1.PodSucceeded), func() string { return logs(ctx, pod) })
		}
		figure("thirty pods with a build each", time.Since(began))
	}, SpecTimeout(specTimeout))
})

// builds counts the builds that run on all builders.
func builds() (int, error) {
	sum := 0
	for _, b := range []*cluster.Builder{older, newer} {
		running, err := b.BuildsRunning()
		if err != nil {
			return 0, err
		}
		sum += running
	}
	return sum, nil
}
