// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/captured"
	"nixbuilder.io/nix-builder-operator/test/chart"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// What the chart says has to be enough for the real operator: it runs here
// with the arguments of the Deployment and the rights of the service account.
var _ = Describe("The operator", Ordered, func() {
	var program string

	BeforeAll(func(ctx SpecContext) {
		program = filepath.Join(GinkgoT().TempDir(), "manager")
		build := exec.Command("go", "build", "-o", program, "./cmd/manager")
		build.Dir = root
		out, err := build.CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), "%s", out)
		for _, name := range []string{"ci", "elsewhere"} {
			ensureNamespace(ctx, name, "restricted")
		}
	})

	for _, mode := range []struct {
		name   string
		values []string
	}{
		{name: "for the whole cluster", values: []string{"watchNamespaces=null"}},
		{name: "for a few namespaces", values: []string{"watchNamespaces={ci}", "metrics.access=Token"}},
	} {
		It("runs with what the chart gives it "+mode.name, func(ctx SpecContext) {
			install("install", mode.values...)
			DeferCleanup(uninstall)
			expectCRD(ctx)
			builder := builders.MakeNixBuilder("away").Namespace("ci").Endpoint("away-1", "127.0.0.1").Obj()
			Expect(apiServer.Create(ctx, builder)).To(Succeed())
			DeferCleanup(func(ctx SpecContext) { Expect(apiServer.Delete(ctx, builder)).To(Succeed()) })

			operator := startOperator(ctx, program)
			Eventually(operator.ready).WithTimeout(patience).Should(Succeed(), operator.log.String)
			Eventually(func(g Gomega) {
				got := &v1alpha1.NixBuilder{}
				g.Expect(apiServer.Get(ctx, client.ObjectKeyFromObject(builder), got)).To(Succeed())
				g.Expect(got.Status.Conditions).NotTo(BeEmpty())
				g.Expect(apiServer.Get(ctx, client.ObjectKey{Namespace: "ci", Name: "nix-machines"}, &corev1.ConfigMap{})).To(Succeed())
			}).WithTimeout(patience).WithContext(ctx).Should(Succeed(), operator.log.String)

			Eventually(operator.metrics).WithArguments("").WithTimeout(patience).Should(Equal(http.StatusUnauthorized), operator.log.String)
			Expect(operator.metrics(scraper(ctx, "stranger"))).To(Equal(http.StatusForbidden))
			token := scraper(ctx, "prometheus")
			allowScraping(ctx, "prometheus")
			Eventually(operator.metrics).WithArguments(token).WithTimeout(patience).Should(Equal(http.StatusOK), operator.log.String)

			operator.stop()
			Expect(operator.log.String()).NotTo(ContainSubstring("forbidden"))
		})
	}

	It("is one of two, of which the other takes over without a trace", func(ctx SpecContext) {
		install("install", "extraArgs={--denied-ranges=}", "log.level=debug")
		DeferCleanup(uninstall)
		expectCRD(ctx)
		builder, server := realBuilder(ctx, "ci")
		// What others see: the objects, and what was told about them.
		look := func() seen { return look(ctx, builder) }

		first := startOperator(ctx, program)
		Eventually(look).WithTimeout(patience).Should(And(
			HaveField("Ready", "AllHealthy"), HaveField("Lines", ContainSubstring("x86_64-linux"))), first.log.String)
		second := startOperator(ctx, program)
		for _, operator := range []*operator{first, second} {
			Eventually(operator.ready).WithTimeout(patience).Should(Succeed(), operator.log.String)
		}
		// The last event may still be under way.
		Eventually(server.Accepted).WithTimeout(patience).Should(BeNumerically(">=", server.Accepted()+2))
		before := look()
		Expect(before.Events).NotTo(BeZero())
		Expect(second.log.String()).NotTo(ContainSubstring(probed))

		Expect(first.command.Process.Kill()).To(Succeed())
		<-first.done
		Expect(second.ready()).To(Succeed())
		Eventually(func() int { return strings.Count(second.log.String(), probed) }).WithTimeout(patience).Should(BeNumerically(">=", 2), second.log.String)
		Expect(look()).To(Equal(before))
		Expect(second.log.String()).NotTo(ContainSubstring("forbidden"))
	})
})

// probed is what the operator logs at level debug after each probe.
const probed = `"msg":"Probed builder"`

// realBuilder makes a NixBuilder in a namespace, and the machine for it in this
// process.
func realBuilder(ctx SpecContext, namespace string) (*v1alpha1.NixBuilder, *sshtest.Server) {
	GinkgoHelper()
	nix := daemontest.New(daemontest.Options{Trust: daemon.Trusted})
	DeferCleanup(nix.Close)
	server := sshtest.New(GinkgoTB(), sshtest.Behavior{Exec: sshtest.NixShell(nix.Serve)})
	host, port, err := net.SplitHostPort(server.Addr())
	Expect(err).NotTo(HaveOccurred())
	number, err := strconv.Atoi(port)
	Expect(err).NotTo(HaveOccurred())
	key, _ := sshtest.NewKeyFile(GinkgoTB())
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: builders.DefaultSecret, Labels: map[string]string{v1alpha1.CredentialLabel: "true"}},
		Type:       corev1.SecretTypeSSHAuth,
		Data:       map[string][]byte{corev1.SSHAuthPrivateKey: key},
	}
	builder := builders.MakeNixBuilder("linux").Namespace(namespace).
		EndpointWith(v1alpha1.Endpoint{Name: "a", Host: host, Port: int32(number)}).TrustOnFirstUse().
		Change(func(b *v1alpha1.NixBuilder) { b.Spec.Probe.IntervalSeconds, b.Spec.Probe.TimeoutSeconds = 5, 5 }).Obj()
	for _, object := range []client.Object{secret, builder} {
		Expect(apiServer.Create(ctx, object)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(apiServer.Delete(ctx, object)).To(Succeed()) })
	}
	return builder, server
}

// seen is what others see of a builder and of the operator's work on it.
type seen struct {
	Ready, Lines       string
	Builder, ConfigMap string // versions
	Events             int    // each with all its repetitions
}

func look(ctx SpecContext, builder *v1alpha1.NixBuilder) seen {
	GinkgoHelper()
	now := &v1alpha1.NixBuilder{}
	Expect(apiServer.Get(ctx, client.ObjectKeyFromObject(builder), now)).To(Succeed())
	published := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: builder.Namespace, Name: "nix-machines"}
	Expect(client.IgnoreNotFound(apiServer.Get(ctx, key, published))).To(Succeed())
	s := seen{Builder: now.ResourceVersion, ConfigMap: published.ResourceVersion, Lines: published.Data["machines"]}
	if ready := now.Status.Condition(v1alpha1.ConditionReady); ready != nil {
		s.Ready = ready.Reason
	}
	var told eventsv1.EventList
	Expect(apiServer.List(ctx, &told, client.InNamespace(builder.Namespace))).To(Succeed())
	for _, event := range told.Items {
		if event.Regarding.UID != builder.UID {
			continue
		}
		s.Events++
		if event.Series != nil {
			s.Events += int(event.Series.Count)
		}
	}
	return s
}

// operator is a running manager.
type operator struct {
	command                       *exec.Cmd
	done                          chan struct{}
	log                           captured.Text
	healthAddress, metricsAddress string
}

// startOperator runs the program as the Deployment of the release does, but
// for addresses and what only a pod has. It ends with the spec.
func startOperator(ctx SpecContext, program string) *operator {
	GinkgoHelper()
	deployment := &appsv1.Deployment{}
	Expect(apiServer.Get(ctx, client.ObjectKey{Namespace: chart.Namespace, Name: chart.Release}, deployment)).To(Succeed())
	pod := deployment.Spec.Template.Spec
	o := &operator{done: make(chan struct{}), healthAddress: freeAddress(), metricsAddress: freeAddress()}
	arguments := append(pod.Containers[0].Args,
		"--kubeconfig="+accountKubeconfig(pod.ServiceAccountName),
		"--leader-election-namespace="+chart.Namespace,
		"--health-probe-bind-address="+o.healthAddress,
		"--metrics-bind-address="+o.metricsAddress)
	o.command = exec.Command(program, arguments...)
	o.command.Stdout, o.command.Stderr = &o.log, &o.log
	o.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	Expect(o.command.Start()).To(Succeed())
	go func() {
		defer close(o.done)
		_ = o.command.Wait() // the log tells why
	}()
	DeferCleanup(o.stop)
	return o
}

// stop ends the operator in an orderly way; a second call does nothing.
func (o *operator) stop() {
	GinkgoHelper()
	_ = o.command.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-o.done:
	case <-time.After(patience):
		_ = o.command.Process.Kill() // likewise
		<-o.done
		Fail("the operator did not end; its log:\n" + o.log.String())
	}
}

func (o *operator) ready() error {
	response, err := http.Get("http://" + o.healthAddress + "/readyz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz: %s", response.Status)
	}
	return nil
}

// metrics returns the status of the answer to a scrape; 0 if there is none.
func (o *operator) metrics(token string) int {
	request, err := http.NewRequest(http.MethodGet, "https://"+o.metricsAddress+"/metrics", nil)
	if err != nil {
		return 0
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	// The certificate is one that the operator has made for itself.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	return response.StatusCode
}

// scraper makes a service account and returns a token of it.
func scraper(ctx SpecContext, name string) string {
	GinkgoHelper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: name}}
	Expect(client.IgnoreAlreadyExists(apiServer.Create(ctx, account))).To(Succeed())
	request := &authenticationv1.TokenRequest{}
	Expect(apiServer.SubResource("token").Create(ctx, account, request)).To(Succeed())
	return request.Status.Token
}

// allowScraping is the command of NOTES.txt.
func allowScraping(ctx SpecContext, name string) {
	GinkgoHelper()
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "scraping"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: chart.Release + "-metrics-reader"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "elsewhere", Name: name}},
	}
	Expect(apiServer.Create(ctx, binding)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(apiServer.Delete(ctx, binding)).To(Succeed()) })
}

// accountKubeconfig writes a kubeconfig for what a pod of the account is.
func accountKubeconfig(account string) string {
	GinkgoHelper()
	const accounts = "system:serviceaccounts"
	config, err := environment.User("system:serviceaccount:"+chart.Namespace+":"+account, accounts, accounts+":"+chart.Namespace)
	Expect(err).NotTo(HaveOccurred())
	path := filepath.Join(GinkgoT().TempDir(), "kubeconfig")
	Expect(clientcmd.WriteToFile(kubeconfigOf(config), path)).To(Succeed())
	return path
}

func kubeconfigOf(config *rest.Config) clientcmdapi.Config {
	return clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{"test": {Server: config.Host, CertificateAuthorityData: config.CAData}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"test": {
			ClientCertificateData: config.CertData, ClientKeyData: config.KeyData, Token: config.BearerToken,
		}},
		Contexts:       map[string]*clientcmdapi.Context{"test": {Cluster: "test", AuthInfo: "test"}},
		CurrentContext: "test",
	}
}

func freeAddress() string {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	defer listener.Close()
	return listener.Addr().String()
}
