// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scale

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers"
	"nixbuilder.io/nix-builder-operator/test/envtest"
)

const (
	root = "../.."
	// operatorNamespace and operatorUser are those of config/default.
	operatorNamespace = "nix-builder-operator"
	operatorUser      = "system:serviceaccount:" + operatorNamespace + ":nix-builder-operator"

	requestTimeout = 30 * time.Second
	pollInterval   = time.Second
)

// site is an API server with everything of config/default, and the operator's
// program.
type site struct {
	environment *envtest.Environment
	admin       client.Client
	dir         string
	program     string
	kubeconfig  string // with the rights of the service account
	starts      int
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{dir: t.TempDir()}
	s.program = filepath.Join(s.dir, "manager")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", s.program, "./cmd/manager")
	build.Dir = root
	// The flags of `make build`, so that both share what they compile.
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	mustRun(t, build)

	s.environment = envtest.ForTest(t, envtest.Options{CRDs: []string{}, AuditLog: filepath.Join(s.dir, "audit.log")})
	scheme, err := controllers.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	if s.admin, err = s.environment.Client(scheme); err != nil {
		t.Fatal(err)
	}
	admin := filepath.Join(s.dir, "admin.kubeconfig")
	if err := s.environment.WriteKubeconfig(admin); err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) {
		mustRun(t, exec.CommandContext(t.Context(), s.environment.Kubectl(), append([]string{"--kubeconfig=" + admin}, args...)...))
	}
	kubectl("apply", "-k", filepath.Join(root, "config", "default"))
	kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/nixbuilders.nixbuilder.io")

	const accounts = "system:serviceaccounts"
	config, err := s.environment.User(operatorUser, accounts, accounts+":"+operatorNamespace)
	if err != nil {
		t.Fatal(err)
	}
	s.kubeconfig = filepath.Join(s.dir, "operator.kubeconfig")
	if err := clientcmd.WriteToFile(kubeconfigOf(config), s.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return s
}

func mustRun(t *testing.T, command *exec.Cmd) {
	t.Helper()
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, output)
	}
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

// operator is a running manager.
type operator struct {
	command *exec.Cmd
	done    chan struct{}
	log     string
}

// startOperator runs the program as config/default does and returns when it is
// ready. It ends with this process, if nobody stops it before.
func (s *site) startOperator(t *testing.T, args ...string) *operator {
	t.Helper()
	s.starts++
	o := &operator{done: make(chan struct{}), log: filepath.Join(s.dir, fmt.Sprintf("operator-%d.log", s.starts))}
	log, err := os.Create(o.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	health := freeAddress(t)
	o.command = exec.Command(s.program, append([]string{
		"--kubeconfig=" + s.kubeconfig,
		"--leader-elect", "--leader-election-namespace=" + operatorNamespace,
		"--health-probe-bind-address=" + health, "--metrics-bind-address=0",
		"--denied-ranges=169.254.0.0/16", // the machines are on loopback addresses
		"--log-level=debug",              // tells when each probe began and ended
	}, args...)...)
	o.command.Stdout, o.command.Stderr = log, log
	o.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := o.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(o.done)
		_ = o.command.Wait() // the log tells why
	}()
	s.waitFor(t, "the operator to be ready", func() (bool, string) {
		select {
		case <-o.done:
			t.Fatalf("the operator has ended; its log ends with:\n%s", o.tail())
		default:
		}
		response, err := http.Get("http://" + health + "/readyz")
		if err != nil {
			return false, err.Error()
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK, response.Status
	})
	return o
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// stop ends the operator in an orderly way; a second call does nothing.
func (o *operator) stop(t *testing.T) {
	t.Helper()
	_ = o.command.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-o.done:
	case <-time.After(requestTimeout):
		_ = o.command.Process.Kill() // likewise
		<-o.done
		t.Errorf("the operator did not end; its log ends with:\n%s", o.tail())
	}
}

// tail returns the last lines of the log.
func (o *operator) tail() string {
	text, err := os.ReadFile(o.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// waitFor asks again and again until what is waited for is done.
func (s *site) waitFor(t *testing.T, what string, poll func() (done bool, state string)) {
	t.Helper()
	deadline := time.After(patience)
	for {
		done, state := poll()
		if done {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("waited %s for %s: %s", patience, what, state)
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(pollInterval):
		}
	}
}

// list reads all objects of a kind in all namespaces.
func (s *site) list(t *testing.T, list client.ObjectList) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
	defer cancel()
	if err := s.admin.List(ctx, list); err != nil {
		t.Fatal(err)
	}
}

// states counts endpoints by reason.
func (s *site) states(t *testing.T) map[string]int {
	t.Helper()
	states := map[string]int{}
	s.count(t, func(e *v1alpha1.EndpointStatus) bool {
		states[e.Reason]++
		return true
	})
	return states
}

// count counts the endpoints that pred holds for.
func (s *site) count(t *testing.T, pred func(*v1alpha1.EndpointStatus) bool) int {
	t.Helper()
	var all v1alpha1.NixBuilderList
	s.list(t, &all)
	n := 0
	for i := range all.Items {
		for k := range all.Items[i].Status.Endpoints {
			if pred(&all.Items[i].Status.Endpoints[k]) {
				n++
			}
		}
	}
	return n
}

// versions returns the resource version of everything that the operator writes in
// the namespaces of the builders.
func (s *site) versions(t *testing.T) map[string]string {
	t.Helper()
	versions := map[string]string{}
	for kind, list := range map[string]client.ObjectList{
		"NixBuilder": &v1alpha1.NixBuilderList{}, "ConfigMap": &corev1.ConfigMapList{}, "Event": &eventsv1.EventList{},
	} {
		s.list(t, list)
		err := meta.EachListItem(list, func(object runtime.Object) error {
			o := object.(client.Object)
			if strings.HasPrefix(o.GetNamespace(), "scale-") {
				versions[kind+" "+o.GetNamespace()+"/"+o.GetName()] = o.GetResourceVersion()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return versions
}
