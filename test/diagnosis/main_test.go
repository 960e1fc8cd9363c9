// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	controllerconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/envtest"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const (
	// patience is for what happens soon, also on a busy machine.
	patience = 90 * time.Second
	// polling is the time between two looks.
	polling = 100 * time.Millisecond
)

// site is a lab with an API server and an operator.
type site struct {
	lab         *nixlab.Lab
	environment *envtest.Environment
	client.Client
	// names is the name server that the operator asks.
	names *nameServer
	// keeps tells whether the operator keeps connections between probes.
	keeps bool
	// spare is a builder that stays well; nil where no test needs it.
	spare *nixlab.Builder
}

// newSite starts all that a test needs, until its end. It skips the test where there
// can be no lab.
func newSite(t *testing.T) *site {
	t.Helper()
	return startSite(t, &site{})
}

// startSite completes a site.
func startSite(t *testing.T, s *site) *site {
	t.Helper()
	if testing.Short() {
		t.Skip("takes minutes")
	}
	if err := nixlab.Prerequisites(); err != nil {
		t.Skip(err)
	}
	lab, err := nixlab.New(nixlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.lab = lab
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	s.names = startNameServer(t)
	s.environment = envtest.ForTest(t, envtest.Options{AuditLog: filepath.Join(t.TempDir(), "audit.log")})
	if s.Client, err = s.environment.Client(scheme); err != nil {
		t.Fatal(err)
	}
	s.startOperator(t, scheme)
	return s
}

// startOperator runs the operator, as "operator" to the API server.
func (s *site) startOperator(t *testing.T, scheme *runtime.Scheme) {
	t.Helper()
	config, err := s.environment.User("operator", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Cache: controllers.CacheOptions(nil), Client: controllers.ClientOptions(),
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: controllerconfig.Controller{SkipNameValidation: ptr.To(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := controllers.SetupAll(manager, controllers.Options{
		Registerer: prometheus.NewRegistry(), Dial: s.names.dialer(deniedHere()), KeepConnections: s.keeps,
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := manager.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		work.Wait()
	})
}

// newBuilder starts a builder that lasts until the end of the test.
func (s *site) newBuilder(t *testing.T, opts nixlab.BuilderOptions) *nixlab.Builder {
	t.Helper()
	builder, err := s.lab.StartBuilder(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", opts.Name, builder.Logs())
		}
		builder.Kill()
	})
	return builder
}

// declare makes a namespace with a NixBuilder that has the builder as its endpoint
// "b", and returns its key.
func (s *site) declare(t *testing.T, namespace string, b *nixlab.Builder, change func(*v1alpha1.NixBuilderSpec)) client.ObjectKey {
	t.Helper()
	key, err := os.ReadFile(s.lab.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	object := builders.MakeNixBuilder("it").Namespace(namespace).Systems(nixlab.System()).
		EndpointWith(v1alpha1.Endpoint{Name: "b", Host: b.IP(), Port: int32(b.Port()), HostKeys: []string{b.HostKey()}}).
		Change(func(n *v1alpha1.NixBuilder) {
			n.Spec.User = nixlab.TrustedUser
			n.Spec.Probe.IntervalSeconds, n.Spec.Probe.TimeoutSeconds = 5, 5
			change(&n.Spec)
		}).Obj()
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: builders.DefaultSecret, Labels: map[string]string{v1alpha1.CredentialLabel: "true"}},
			Type:       corev1.SecretTypeSSHAuth, Data: map[string][]byte{corev1.SSHAuthPrivateKey: key},
		},
		object,
	} {
		if err := s.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	return client.ObjectKeyFromObject(object)
}

// seen is what people and clients see of a builder with one endpoint.
type seen struct {
	State    v1alpha1.EndpointState
	Reason   string // of the endpoint
	Verified string // status and reason of condition SystemsVerified
	Ready    string // status and reason
	Message  string // of condition SystemsVerified
	Systems  string // of its line in the machines file; empty where it has none
}

func (s *site) see(ctx context.Context, key client.ObjectKey) (seen, error) {
	var object v1alpha1.NixBuilder
	if err := s.Get(ctx, key, &object); err != nil {
		return seen{}, err
	}
	var file corev1.ConfigMap
	if err := s.Get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: "nix-machines"}, &file); client.IgnoreNotFound(err) != nil {
		return seen{}, err
	}
	var now seen
	if endpoint := object.Status.Endpoint("b"); endpoint != nil {
		now.State, now.Reason = endpoint.State, endpoint.Reason
	}
	condition := func(conditionType string) (string, string) {
		c := object.Status.Condition(conditionType)
		if c == nil {
			return "", ""
		}
		return fmt.Sprintf("%s %s", c.Status, c.Reason), c.Message
	}
	now.Verified, now.Message = condition(v1alpha1.ConditionSystemsVerified)
	now.Ready, _ = condition(v1alpha1.ConditionReady)
	for line := range strings.Lines(file.Data["machines"]) {
		if columns := strings.Fields(line); len(columns) == 8 && strings.HasPrefix(line, "ssh-ng://") {
			now.Systems = columns[1]
		}
	}
	return now, nil
}

// await waits until a builder looks as wanted, the message aside, and returns that.
func (s *site) await(t *testing.T, key client.ObjectKey, want seen) string {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		got, err := s.see(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		message := got.Message
		got.Message = ""
		if got == want {
			return message
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is\n%+v, not\n%+v\n%s", key, got, want, message)
		}
		time.Sleep(polling)
	}
}

// eventReasons lists the reasons of the events about the objects of a namespace, each
// as often as it was told.
func (s *site) eventReasons(t *testing.T, namespace string) map[string]int {
	t.Helper()
	var list eventsv1.EventList
	if err := s.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	reasons := map[string]int{}
	for _, event := range list.Items {
		reasons[event.Reason]++
		if event.Series != nil {
			reasons[event.Reason] += int(event.Series.Count) - 1
		}
	}
	return reasons
}

// statusWrites counts the operator's writes of status in a namespace.
func (s *site) statusWrites(t *testing.T, namespace string) int {
	t.Helper()
	writes, err := s.environment.Writes()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, write := range writes {
		if write.Namespace == namespace && strings.HasPrefix(write.User, "operator") {
			n++
		}
	}
	return n
}
