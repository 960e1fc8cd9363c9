// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/nixbuilder"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// fakeProber answers with what a spec has put into it.
type fakeProber struct {
	mu        sync.Mutex
	targets   map[probe.Key][]probe.Target
	snapshots map[probe.Key]map[string]probe.Snapshot
	// requests has the tokens of all requests, each once.
	requests []string
}

func (p *fakeProber) Request(_ probe.Key, token string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.requests, token) {
		p.requests = append(p.requests, token)
	}
}

func (p *fakeProber) Set(builder probe.Key, targets []probe.Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets[builder] = targets
}

func (p *fakeProber) Forget(builder probe.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.targets, builder)
	delete(p.snapshots, builder)
}

func (p *fakeProber) Snapshot(builder probe.Key) map[string]probe.Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := map[string]probe.Snapshot{}
	for _, target := range p.targets[builder] {
		known[target.Endpoint] = probe.Snapshot{State: probe.StateUnknown, Reason: probe.ReasonNotProbed}
		if target.Restored != nil {
			known[target.Endpoint] = *target.Restored
		}
	}
	maps.Copy(known, p.snapshots[builder])
	return known
}

// harness is a reconciler with everything around it in the hand of a spec.
type harness struct {
	namespace  string
	prober     *fakeProber
	clock      *clocktesting.FakePassiveClock
	recorder   *events.FakeRecorder
	reconciler *nixbuilder.Reconciler
}

// newHarness makes a namespace with a good Secret, and a reconciler.
func newHarness(ctx context.Context) *harness {
	GinkgoHelper()
	h := &harness{
		namespace: newNamespace(ctx),
		prober:    &fakeProber{targets: map[probe.Key][]probe.Target{}, snapshots: map[probe.Key]map[string]probe.Snapshot{}},
		clock:     clocktesting.NewFakePassiveClock(time.Now().Truncate(time.Second)),
		recorder:  events.NewFakeRecorder(1000),
	}
	h.reconciler = h.newReconciler(apiServer)
	key, _ := sshtest.NewKeyFile(GinkgoTB())
	h.createSecret(ctx, credential(h.namespace, builders.DefaultSecret, key))
	return h
}

func (h *harness) newReconciler(c client.Client) *nixbuilder.Reconciler {
	GinkgoHelper()
	metrics, err := nixbuilder.NewMetrics(prometheus.NewRegistry())
	Expect(err).NotTo(HaveOccurred())
	return nixbuilder.NewReconciler(nixbuilder.Options{
		Client: c, Secrets: c, Prober: h.prober, Recorder: h.recorder, Metrics: metrics, Clock: h.clock,
		Jitter: func() float64 { return 0 },
	})
}

// credential is a good Secret.
func credential(namespace, name string, privateKey []byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{v1alpha1.CredentialLabel: "true"}},
		Type:       corev1.SecretTypeSSHAuth,
		Data:       map[string][]byte{corev1.SSHAuthPrivateKey: privateKey},
	}
}

func (h *harness) createSecret(ctx context.Context, secret *corev1.Secret) {
	GinkgoHelper()
	Expect(apiServer.Create(ctx, secret)).To(Succeed())
}

// create makes a builder in the harness' namespace.
func (h *harness) create(ctx context.Context, wrapper *builders.NixBuilderWrapper) *v1alpha1.NixBuilder {
	GinkgoHelper()
	builder := wrapper.Namespace(h.namespace).Obj()
	Expect(apiServer.Create(ctx, builder)).To(Succeed())
	return builder
}

// reconcile makes a pass and returns the builder as it is then.
func (h *harness) reconcile(ctx context.Context, name string) (*v1alpha1.NixBuilder, ctrl.Result) {
	GinkgoHelper()
	key := client.ObjectKey{Namespace: h.namespace, Name: name}
	result, err := h.reconciler.Reconcile(ctx, ctrl.Request{NamespacedName: key})
	Expect(err).NotTo(HaveOccurred())
	builder := &v1alpha1.NixBuilder{}
	Expect(client.IgnoreNotFound(apiServer.Get(ctx, key, builder))).To(Succeed())
	return builder, result
}

// knows puts what the prober knows of an endpoint.
func (h *harness) knows(builder, endpoint string, snapshot probe.Snapshot) {
	key := probe.Key{Namespace: h.namespace, Name: builder}
	h.prober.mu.Lock()
	defer h.prober.mu.Unlock()
	if h.prober.snapshots[key] == nil {
		h.prober.snapshots[key] = map[string]probe.Snapshot{}
	}
	h.prober.snapshots[key][endpoint] = snapshot
}

// targets are what the prober was told last.
func (h *harness) targets(builder string) []probe.Target {
	h.prober.mu.Lock()
	defer h.prober.mu.Unlock()
	return h.prober.targets[probe.Key{Namespace: h.namespace, Name: builder}]
}

// requests are the tokens of the requests that the prober has had.
func (h *harness) requests() []string {
	h.prober.mu.Lock()
	defer h.prober.mu.Unlock()
	return slices.Clone(h.prober.requests)
}

// events takes the events since the last call.
func (h *harness) events() []string {
	var taken []string
	for {
		select {
		case event := <-h.recorder.Events:
			taken = append(taken, event)
		default:
			return taken
		}
	}
}

// facts are what a machine with nothing wrong tells.
func facts(hostKey string) probe.Facts {
	_, fingerprint, err := probe.CheckHostKey(hostKey)
	Expect(err).NotTo(HaveOccurred())
	return probe.Facts{
		NixVersion: "2.34.8", ProtocolVersion: "1.38", Trust: probe.Trusted,
		Systems: []string{"x86_64-linux"}, Features: []string{"kvm"}, MaxJobs: 4,
		HostKey: hostKey, HostKeyFingerprint: fingerprint, Credential: builders.DefaultSecret,
	}
}

// healthy is what the prober keeps of a machine after a good probe.
func healthy(at time.Time, hostKey string) probe.Snapshot {
	snapshot := probe.Snapshot{State: probe.StateHealthy, Reason: probe.ReasonAllPassed, Message: "every step passed", Since: at, LastHealthy: at}
	snapshot.Result.Facts = facts(hostKey)
	for _, step := range probe.Steps() {
		snapshot.Result.Outcomes = append(snapshot.Result.Outcomes, probe.Outcome{Step: step, Status: probe.StatusTrue, Reason: "Passed", Message: "passed"})
	}
	return snapshot
}

// failed is what the prober keeps of a machine whose probes end at a step.
func failed(at time.Time, state probe.State, step probe.Step, reason probe.Reason, message string) probe.Snapshot {
	snapshot := probe.Snapshot{State: state, Reason: reason, Message: message, Since: at, LastHealthy: at}
	status := probe.StatusTrue
	for _, next := range probe.Steps() {
		outcome := probe.Outcome{Step: next, Status: status, Reason: probe.ReasonNotReached}
		if next == step {
			outcome = probe.Outcome{Step: next, Status: probe.StatusFalse, Reason: reason, Message: message}
			status = probe.StatusUnknown
		}
		snapshot.Result.Outcomes = append(snapshot.Result.Outcomes, outcome)
	}
	return snapshot
}

// haveCondition matches a NixBuilder with that condition.
func haveCondition(conditionType string, status metav1.ConditionStatus, reason string) OmegaMatcher {
	return WithTransform(func(builder *v1alpha1.NixBuilder) (metav1.Condition, error) {
		if condition := builder.Status.Condition(conditionType); condition != nil {
			return *condition, nil
		}
		return metav1.Condition{}, errors.New("no condition " + conditionType)
	}, And(HaveField("Status", status), HaveField("Reason", reason)))
}
