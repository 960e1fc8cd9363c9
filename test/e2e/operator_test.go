// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/captured"
	"nixbuilder.io/nix-builder-operator/test/envtest"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// The operator as a program, with real builders that go wrong in all ways
// that can be told apart from outside.
var _ = Describe("The operator", Ordered, func() {
	const (
		pool      = "pool"
		listed    = "machines" // key of the ConfigMap
		configMap = "nix-machines"
	)
	var (
		cluster client.Client
		real    = map[string]*nixlab.Builder{}
	)

	BeforeAll(func(ctx context.Context) {
		environment, err := envtest.Start(envtest.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(environment.Stop)
		Expect(v1alpha1.AddToScheme(scheme.Scheme)).To(Succeed())
		cluster, err = environment.Client(scheme.Scheme)
		Expect(err).NotTo(HaveOccurred())
		startOperator(environment)

		key, err := os.ReadFile(lab.ClientKeyFile())
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: metav1.NamespaceDefault,
				Name:      builders.DefaultSecret,
				Labels:    map[string]string{v1alpha1.CredentialLabel: "true"},
			},
			Type: corev1.SecretTypeSSHAuth,
			Data: map[string][]byte{corev1.SSHAuthPrivateKey: key},
		})).To(Succeed())

		object := builders.MakeNixBuilder(pool).Systems(nixlab.System())
		for _, name := range []string{"well", "stopped", "daemonless", "refusing"} {
			b := newBuilder(ctx, nixlab.BuilderOptions{Name: "operator-" + name})
			real[name] = b
			object.EndpointWith(v1alpha1.Endpoint{Name: name, Host: b.IP(), Port: int32(b.Port()), HostKeys: []string{b.HostKey()}})
		}
		for name, port := range map[string]int32{"silent": silentServer(), "http": httpServer()} {
			object.EndpointWith(v1alpha1.Endpoint{Name: name, Host: "127.0.0.1", Port: port})
		}
		Expect(cluster.Create(ctx, object.Change(func(b *v1alpha1.NixBuilder) {
			b.Spec.User = nixlab.TrustedUser
			b.Spec.Probe = v1alpha1.Probe{IntervalSeconds: 5, TimeoutSeconds: 2, FailureThreshold: 2}
		}).Obj())).To(Succeed())
	}, NodeTimeout(specTimeout))

	state := func(ctx context.Context, endpoint string) func() (string, error) {
		return func() (string, error) {
			var object v1alpha1.NixBuilder
			if err := cluster.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: pool}, &object); err != nil {
				return "", err
			}
			status := object.Status.Endpoint(endpoint)
			if status == nil {
				return "", nil
			}
			return string(status.State) + " " + status.Reason, nil
		}
	}
	lists := func(ctx context.Context, b *nixlab.Builder) func() (bool, error) {
		return func() (bool, error) {
			var object corev1.ConfigMap
			if err := cluster.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: configMap}, &object); err != nil {
				return false, client.IgnoreNotFound(err)
			}
			return strings.Contains(object.Data[listed], "@"+b.IP()+" "), nil
		}
	}

	It("lists the builders that are well, and tells what is wrong with what is no builder", func(ctx context.Context) {
		for name, b := range real {
			Eventually(state(ctx, name)).WithTimeout(patience).Should(HavePrefix("Healthy"), name)
			Eventually(lists(ctx, b)).WithTimeout(patience).Should(BeTrue(), name)
		}
		Eventually(state(ctx, "silent")).WithTimeout(patience).Should(HaveSuffix("SSHSilent"))
		Eventually(state(ctx, "http")).WithTimeout(patience).Should(HaveSuffix("NotAnSSHServer"))
	}, SpecTimeout(specTimeout))

	breakages := map[string]struct {
		do, undo func(context.Context, *nixlab.Builder) error
		reason   string
		// lost: the connection that the operator keeps between probes is lost.
		lost bool
	}{
		"stopped": {
			do:     func(_ context.Context, b *nixlab.Builder) error { return b.StopProcesses() },
			undo:   func(_ context.Context, b *nixlab.Builder) error { return b.ContinueProcesses() },
			reason: "SSHServerStopped", lost: true,
		},
		"daemonless": {
			do:     func(_ context.Context, b *nixlab.Builder) error { return b.StopDaemon() },
			undo:   func(_ context.Context, b *nixlab.Builder) error { return b.ContinueDaemon() },
			reason: "NixDaemonNotAnswering",
		},
		"refusing": {
			do:     func(_ context.Context, b *nixlab.Builder) error { b.Kill(); return nil },
			undo:   func(ctx context.Context, b *nixlab.Builder) error { return b.Restart(ctx) },
			reason: "ConnectionRefused", lost: true,
		},
	}

	It("gives each kind of failure its own reason at the first probe, and unlists the builder", func(ctx context.Context) {
		for name, breakage := range breakages {
			Expect(breakage.do(ctx, real[name])).To(Succeed())
		}
		seen := map[string][]string{}
		unlisted := func() bool {
			all := true
			for name := range breakages {
				now, err := state(ctx, name)()
				Expect(err).NotTo(HaveOccurred())
				if states := seen[name]; len(states) == 0 || states[len(states)-1] != now {
					seen[name] = append(states, now)
				}
				listed, err := lists(ctx, real[name])()
				Expect(err).NotTo(HaveOccurred())
				all = all && !listed
			}
			return all
		}
		Eventually(unlisted).WithTimeout(2*patience).WithPolling(50*time.Millisecond).Should(BeTrue(), "states so far: %v", &seen)
		for name, breakage := range breakages {
			suspect := ContainElement("Suspect " + breakage.reason)
			if breakage.lost {
				suspect = Not(ContainElement(HavePrefix("Suspect ")))
			}
			Expect(seen[name]).To(suspect, "%s went through %v", name, seen[name])
			Eventually(state(ctx, name)).WithTimeout(patience).Should(Equal("Unhealthy " + breakage.reason))
		}
		Expect(lists(ctx, real["well"])()).To(BeTrue(), "the builder that is well is no longer listed")
	}, SpecTimeout(specTimeout))

	It("lists them again once they are mended", func(ctx context.Context) {
		for name, breakage := range breakages {
			Expect(breakage.undo(ctx, real[name])).To(Succeed())
		}
		for name := range breakages {
			Eventually(state(ctx, name)).WithTimeout(2*patience).Should(HavePrefix("Healthy"), name)
			Eventually(lists(ctx, real[name])).WithTimeout(patience).Should(BeTrue(), name)
		}
	}, SpecTimeout(specTimeout))
})

// startOperator runs the manager program until the end of the current node.
func startOperator(environment *envtest.Environment) {
	GinkgoHelper()
	kubeconfig := filepath.Join(GinkgoT().TempDir(), "kubeconfig")
	Expect(environment.WriteKubeconfig(kubeconfig)).To(Succeed())
	var log captured.Text
	command := exec.Command(filepath.Join(programs, "manager"), "--kubeconfig="+kubeconfig, "--log-level=debug",
		"--health-probe-bind-address=0", "--metrics-bind-address=0",
		// Loopback, which is denied by default, is where the lab is.
		"--denied-ranges=169.254.0.0/16")
	command.Stdout, command.Stderr = &log, &log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	Expect(command.Start()).To(Succeed())
	DeferCleanup(func() {
		Expect(command.Process.Signal(syscall.SIGTERM)).To(Succeed())
		Expect(command.Wait()).To(Succeed(), "the operator's log:\n%s", &log)
		key, err := os.ReadFile(lab.ClientKeyFile())
		Expect(err).NotTo(HaveOccurred())
		for _, line := range strings.Split(strings.TrimSpace(string(key)), "\n") {
			Expect(log.String()).NotTo(ContainSubstring(line), "the private key is in the log")
		}
		if CurrentSpecReport().Failed() {
			AddReportEntry("log of the operator", log.String())
		}
	})
}

// silentServer accepts connections and never says a word.
func silentServer() int32 {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(listener.Close)
	go func() {
		var held []net.Conn // a connection that nothing refers to gets closed
		for {
			connection, err := listener.Accept()
			if err != nil {
				break
			}
			held = append(held, connection)
		}
		for _, connection := range held {
			connection.Close()
		}
	}()
	return int32(listener.Addr().(*net.TCPAddr).Port)
}

// httpServer serves HTTP.
func httpServer() int32 {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	server := &http.Server{ReadHeaderTimeout: patience}
	go func() { _ = server.Serve(listener) }()
	DeferCleanup(server.Close)
	return int32(listener.Addr().(*net.TCPAddr).Port)
}
