// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// buildPlugin compiles the plugin once for all specs.
var buildPlugin = sync.OnceValues(func() (string, error) {
	program := filepath.Join(scratch, "kubectl-nixbuilder")
	build := exec.Command("go", "build", "-o", program, "./cmd/kubectl-nixbuilder")
	build.Dir = filepath.Join("..", "..", "..")
	// The flags of `make build`, so that both share what they compile.
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, output)
	}
	return program, nil
})

// answer is what the plugin said.
type answer struct {
	Status         int
	Stdout, Stderr string
}

// plugin runs the plugin as the administrator in a namespace.
type plugin struct {
	program, kubeconfig, namespace string
}

func newPlugin(namespace string) *plugin {
	GinkgoHelper()
	program, err := buildPlugin()
	Expect(err).NotTo(HaveOccurred())
	kubeconfig := filepath.Join(GinkgoT().TempDir(), "kubeconfig")
	Expect(environment.WriteKubeconfig(kubeconfig)).To(Succeed())
	return &plugin{program, kubeconfig, namespace}
}

func (p *plugin) run(ctx context.Context, args ...string) answer {
	GinkgoHelper()
	at := slices.Index(args, "__complete") + 1 // completion takes the last argument for the one to complete
	command := exec.CommandContext(withTimeout(ctx), p.program, slices.Insert(args, at, "--namespace="+p.namespace)...)
	command.Env = append(os.Environ(), "KUBECONFIG="+p.kubeconfig)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		Expect(err).NotTo(HaveOccurred())
	}
	return answer{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// document runs the plugin with -o json.
func (p *plugin) document(ctx context.Context, status int, args ...string) map[string]any {
	GinkgoHelper()
	got := p.run(ctx, append(args, "-o", "json")...)
	Expect(got.Status).To(Equal(status), "%+v", got)
	var document map[string]any
	Expect(json.Unmarshal([]byte(got.Stdout), &document)).To(Succeed(), got.Stdout)
	return document
}

var _ = Describe("The kubectl plugin", func() {
	var (
		namespace string
		m         *machine
		kubectl   *plugin
		site      *operator
	)
	get := func(ctx context.Context) (*v1alpha1.NixBuilder, error) {
		builder := &v1alpha1.NixBuilder{}
		return builder, apiServer.Get(withTimeout(ctx), client.ObjectKey{Namespace: namespace, Name: "linux"}, builder)
	}
	BeforeEach(func(ctx SpecContext) {
		namespace = newNamespace(ctx)
		key, _ := sshtest.NewKeyFile(GinkgoTB())
		Expect(apiServer.Create(withTimeout(ctx), credential(namespace, builders.DefaultSecret, key))).To(Succeed())
		m = startMachine()
		gone := v1alpha1.Endpoint{Name: "gone", Host: "127.0.0.1", Port: 1, HostKeys: []string{builders.HostKey("gone")}}
		builder := builders.MakeNixBuilder("linux").Namespace(namespace).EndpointWith(gone).EndpointWith(m.endpoint("a")).Obj()
		Expect(apiServer.Create(withTimeout(ctx), builder)).To(Succeed())
		site = startOperator("", namespace)
		Eventually(func() (*v1alpha1.NixBuilder, error) { return get(ctx) }).Should(haveCondition(v1alpha1.ConditionReady, isTrue, "Degraded"))
		kubectl = newPlugin(namespace)
	})

	It("has the operator probe, and prints each step", func(ctx SpecContext) {
		got := kubectl.run(ctx, "doctor", "linux")
		Expect(got.Status).To(Equal(1), "%+v", got)
		Expect(got.Stdout).To(And(
			ContainSubstring(namespace+"/linux  SOMETHING IS WRONG"),
			MatchRegexp(`(?m)^  a \(127\.0\.0\.1:\d+\)  all well$`),
			MatchRegexp(`(?m)^    NixAvailable +ok +\d+ ms$`),
			ContainSubstring("machines file: listed for x86_64-linux"),
			MatchRegexp(`(?m)^    Reachable +WRONG .*ConnectionRefused$`),
			ContainSubstring("start sshd"),
			ContainSubstring("machines file: left out: out of use (ConnectionRefused), and was never healthy"),
			ContainSubstring("2 machines: 1 well, 1 with something wrong")), got.Stdout)
		Expect(got.Stdout).NotTo(ContainSubstring("\x1b"))

		document := kubectl.document(ctx, 1, "doctor")
		builder := document["builders"].([]any)[0].(map[string]any)
		Expect(builder).To(And(HaveKeyWithValue("namespace", namespace), HaveKeyWithValue("name", "linux"), HaveKeyWithValue("finding", "Wrong")))
		Expect(builder["machines"]).To(HaveLen(2))

		By("saying so where nobody answers")
		site.stop()
		got = kubectl.run(ctx, "doctor", "linux", "--timeout=2s")
		Expect(got.Status).To(Equal(2), "%+v", got)
		Expect(got.Stdout).To(And(ContainSubstring("has not answered within 2s"), ContainSubstring("Ready is True (Degraded)")), got.Stdout)

		By("naming what does not exist, and what is not allowed")
		got = kubectl.run(ctx, "doctor", "nobody")
		Expect(got).To(And(HaveField("Status", 2), HaveField("Stderr", ContainSubstring("there is no NixBuilder nobody"))))
		got = kubectl.run(ctx, "list", "--as=somebody")
		Expect(got).To(And(HaveField("Status", 2), HaveField("Stderr", ContainSubstring("you may not"))))
	})

	It("lists machines, the machines file, and where builds go", func(ctx SpecContext) {
		got := kubectl.run(ctx, "list")
		Expect(got).To(HaveField("Status", 0))
		Expect(got.Stdout).To(And(
			MatchRegexp(`(?m)^linux/a +127\.0\.0\.1:\d+ +Healthy +\S+ +\S+ +x86_64-linux +kvm +4 +2\.34\.8 +builder-key +-$`),
			MatchRegexp(`(?m)^linux/gone +127\.0\.0\.1:1 +Unhealthy +\S+ +ConnectionRefused `)), got.Stdout)
		Expect(kubectl.run(ctx, "list", "-o", "name").Stdout).To(Equal("linux/a\nlinux/gone\n"))
		Expect(kubectl.document(ctx, 0, "list")["machines"]).To(HaveLen(2))

		Eventually(func() int { return kubectl.run(ctx, "machines").Status }).Should(Equal(0))
		got = kubectl.run(ctx, "machines")
		Expect(got.Stdout).To(And(MatchRegexp(`(?m)^ssh-ng://nix@a\.linux\.nixbuilder x86_64-linux `), ContainSubstring("# linux/gone is left out: ")), got.Stdout)
		Expect(kubectl.document(ctx, 0, "machines")).To(And(HaveKeyWithValue("published", true), HaveKeyWithValue("current", true)))

		got = kubectl.run(ctx, "why", "x86_64-linux", "kvm")
		Expect(got).To(And(HaveField("Status", 0), HaveField("Stdout", ContainSubstring("goes to linux/a."))))
		got = kubectl.run(ctx, "why", "aarch64-linux")
		Expect(got).To(And(HaveField("Status", 1), HaveField("Stdout", ContainSubstring("it does not build for aarch64-linux, only for x86_64-linux"))))

		Expect(kubectl.run(ctx, "__complete", "cordon", "linux/").Stdout).To(HavePrefix("linux\nlinux/a\nlinux/gone\n"))
		Expect(kubectl.run(ctx, "__complete", "why", "x86_64-linux", "").Stdout).To(HavePrefix("kvm\n"))
	})

	It("cordons without losing what others change", func(ctx SpecContext) {
		got := kubectl.run(ctx, "cordon", "linux/a", "--reason", "new disk", "--until", "2h")
		Expect(got).To(And(HaveField("Status", 0), HaveField("Stdout", ContainSubstring("linux/a is cordoned until"))))
		builder, err := get(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(builder.Spec.Endpoints[1].Cordon).To(HaveField("Reason", "new disk"))
		Expect(builder.Spec.Endpoints[0].Cordon).To(BeNil())
		Expect(kubectl.run(ctx, "why", "x86_64-linux")).To(And(HaveField("Status", 1),
			HaveField("Stdout", And(ContainSubstring("waits"), ContainSubstring("it is cordoned: new disk (until")))))

		By("taking it away, also where endpoints have changed places")
		Eventually(func() error {
			builder, err := get(ctx)
			if err != nil {
				return err
			}
			slices.Reverse(builder.Spec.Endpoints)
			return apiServer.Update(withTimeout(ctx), builder)
		}).Should(Succeed())
		Expect(kubectl.document(ctx, 0, "uncordon", "linux/a")["subjects"]).To(ConsistOf(
			And(HaveKeyWithValue("name", "linux/a"), HaveKeyWithValue("changed", true), HaveKeyWithValue("cordon", BeNil()))))
		builder, err = get(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(builder.Spec.Endpoints[0].Cordon).To(BeNil())
		Expect(kubectl.run(ctx, "uncordon", "linux/a").Stdout).To(Equal("linux/a is not cordoned\n"))

		By("a whole builder, without the end of an earlier cordon")
		Expect(kubectl.run(ctx, "cordon", "linux", "--reason", "a", "--until", "1h")).To(HaveField("Status", 0))
		Expect(kubectl.run(ctx, "cordon", "linux", "--reason", "b")).To(HaveField("Status", 0))
		builder, err = get(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(builder.Spec.Cordon).To(Equal(&v1alpha1.Cordon{Reason: "b"}))
		Expect(kubectl.run(ctx, "uncordon", "linux/a").Stdout).To(ContainSubstring("all of linux is cordoned (b)"))
		Expect(kubectl.run(ctx, "uncordon", "linux")).To(HaveField("Status", 0))
		Expect(kubectl.run(ctx, "cordon", "linux/nobody", "--reason", "c")).To(And(HaveField("Status", 2),
			HaveField("Stderr", ContainSubstring("has no endpoint nobody, only"))))
	})

	It("has patches refused that are about another endpoint", func(ctx SpecContext) {
		builder, err := get(ctx)
		Expect(err).NotTo(HaveOccurred())
		patch := []byte(`[{"op":"test","path":"/spec/endpoints/0/name","value":"a"},{"op":"add","path":"/spec/endpoints/0/cordon","value":{"reason":"r"}}]`)
		Expect(apiServer.Patch(withTimeout(ctx), builder, client.RawPatch("application/json-patch+json", patch))).NotTo(Succeed())
	})
})
