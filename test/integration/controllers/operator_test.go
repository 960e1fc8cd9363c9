// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

var _ = Describe("The operator", func() {
	// quick is a builder that is probed as often as is allowed.
	quick := func(name string) *builders.NixBuilderWrapper {
		return builders.MakeNixBuilder(name).Change(func(b *v1alpha1.NixBuilder) {
			b.Spec.Probe.IntervalSeconds, b.Spec.Probe.TimeoutSeconds, b.Spec.Probe.FailureThreshold = 5, 5, 1
		})
	}
	get := func(ctx context.Context, namespace, name string) func() (*v1alpha1.NixBuilder, error) {
		return func() (*v1alpha1.NixBuilder, error) {
			builder := &v1alpha1.NixBuilder{}
			return builder, apiServer.Get(withTimeout(ctx), client.ObjectKey{Namespace: namespace, Name: name}, builder)
		}
	}
	makeCredential := func(ctx context.Context, namespace string) {
		GinkgoHelper()
		key, _ := sshtest.NewKeyFile(GinkgoTB())
		Expect(apiServer.Create(withTimeout(ctx), credential(namespace, builders.DefaultSecret, key))).To(Succeed())
	}

	It("probes, reports, publishes and wakes up when something changes", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		makeCredential(ctx, namespace)
		m := startMachine()
		startedOperator := startOperator("", namespace)

		Expect(apiServer.Create(withTimeout(ctx), quick("linux").Namespace(namespace).EndpointWith(m.endpoint("a")).Obj())).To(Succeed())
		Eventually(get(ctx, namespace, "linux")).Should(haveCondition(v1alpha1.ConditionReady, isTrue, "AllHealthy"))
		builder, err := get(ctx, namespace, "linux")()
		Expect(err).NotTo(HaveOccurred())
		Expect(builder.Status).To(And(
			HaveField("Healthy", "1/1"), HaveField("Systems", "x86_64-linux"), HaveField("Jobs", int32(4)), HaveField("Nix", "2.34.8")))
		Expect(builder.Status.Endpoints[0]).To(And(
			HaveField("Features", []string{"kvm"}), HaveField("Credential", builders.DefaultSecret), HaveField("HostKey", hostKeyOf(m.Server))))
		published := &corev1.ConfigMap{}
		Eventually(func() error {
			return apiServer.Get(withTimeout(ctx), client.ObjectKey{Namespace: namespace, Name: "nix-machines"}, published)
		}).Should(Succeed())

		By("noticing that the machine is lost and comes back")
		m.Set(sshtest.Behavior{Fault: sshtest.FaultHangUp})
		m.CloseConnections()
		Eventually(get(ctx, namespace, "linux")).Should(haveCondition(v1alpha1.ConditionReady, isFalse, "ConnectionTurnedAway"))
		m.Set(sshtest.Behavior{Exec: m.run})
		Eventually(get(ctx, namespace, "linux")).Should(haveCondition(v1alpha1.ConditionReady, isTrue, "AllHealthy"))

		By("probing when asked to, and telling of every step how long it took")
		builder, err = get(ctx, namespace, "linux")()
		Expect(err).NotTo(HaveOccurred())
		ask(ctx, builder, "now")
		Eventually(func() (*v1alpha1.LastProbe, error) {
			builder, err := get(ctx, namespace, "linux")()
			return builder.Status.LastProbe, err
		}).Should(And(HaveField("Request", "now"), HaveField("Endpoints", HaveExactElements(
			And(HaveField("Name", "a"), HaveField("Steps", And(
				HaveLen(len(probe.Steps())), HaveEach(And(HaveField("Status", Not(Equal(isFalse))), HaveField("DurationMilliseconds", BeNumerically(">=", 0)))),
				ContainElement(And(HaveField("Type", "Authenticated"), HaveField("DurationMilliseconds", BeNumerically(">", 0)))),
			))),
		))))
		Expect(total(startedOperator, "nixbuilders_probe_requests_total")).To(Equal(1.0))

		By("giving a machine to the next builder as soon as the first is gone")
		younger := quick("younger").Namespace(namespace).EndpointWith(m.endpoint("b")).Obj()
		Expect(apiServer.Create(withTimeout(ctx), younger)).To(Succeed())
		Eventually(get(ctx, namespace, "younger")).Should(haveCondition(v1alpha1.ConditionAccepted, isFalse, "DuplicateEndpoint"))
		Expect(apiServer.Delete(withTimeout(ctx), builder)).To(Succeed())
		Eventually(get(ctx, namespace, "younger")).WithTimeout(20 * time.Second).Should(haveCondition(v1alpha1.ConditionAccepted, isTrue, "Accepted"))
	})

	It("writes nothing while nothing changes", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		makeCredential(ctx, namespace)
		good, bad := startMachine(), startMachine()
		bad.Set(sshtest.Behavior{Fault: sshtest.FaultText, Text: "HTTP/1.1 400 Bad Request\r\n"})
		o := startOperator("", namespace)
		Expect(apiServer.Create(withTimeout(ctx), quick("good").Namespace(namespace).EndpointWith(good.endpoint("a")).Obj())).To(Succeed())
		Expect(apiServer.Create(withTimeout(ctx), quick("bad").Namespace(namespace).EndpointWith(bad.endpoint("a")).Obj())).To(Succeed())
		Eventually(get(ctx, namespace, "good")).Should(haveCondition(v1alpha1.ConditionReady, isTrue, "AllHealthy"))
		Eventually(get(ctx, namespace, "bad")).Should(haveCondition(v1alpha1.ConditionReady, isFalse, "NotAnSSHServer"))
		probes := func() float64 { return total(o, "nixbuilders_probes_total") }
		// The last event and the last ConfigMap may still be under way.
		settled := probes() + 2
		Eventually(probes).Should(BeNumerically(">=", settled))

		begin := time.Now()
		Eventually(probes).Should(BeNumerically(">=", settled+4))
		writes, err := environment.Writes()
		Expect(err).NotTo(HaveOccurred())
		for _, write := range writes {
			if write.Namespace == namespace {
				Expect(write.Time).To(BeTemporally("<", begin), "write %+v", write)
			}
		}
	})

	It("connects and writes on the leader alone, and hands over at once", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		makeCredential(ctx, namespace)
		m := startMachine()
		first := startOperator(namespace, namespace)
		Expect(apiServer.Create(withTimeout(ctx), quick("linux").Namespace(namespace).EndpointWith(m.endpoint("a")).Obj())).To(Succeed())
		Eventually(get(ctx, namespace, "linux")).Should(haveCondition(v1alpha1.ConditionReady, isTrue, "AllHealthy"))

		second := startOperator(namespace, namespace)
		Eventually(first.dials.Load).Should(BeNumerically(">=", first.dials.Load()+2))
		Expect(second.dials.Load()).To(BeZero())

		first.stop()
		last := first.dials.Load()
		Eventually(second.dials.Load).WithTimeout(20 * time.Second).Should(BeNumerically(">", 0))
		Expect(first.dials.Load()).To(Equal(last))
		Consistently(get(ctx, namespace, "linux")).WithTimeout(2 * time.Second).Should(haveCondition(v1alpha1.ConditionReady, isTrue, "AllHealthy"))
	})

	It("shows no private key anywhere", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		m := startMachine()
		o := startOperator("", namespace)
		good, _ := sshtest.NewKeyFile(GinkgoTB())
		whole, _ := sshtest.NewKeyFile(GinkgoTB())
		// A line is missing in the middle of it: the parser gets far.
		lines := bytes.Split(whole, []byte("\n"))
		malformed := bytes.Join(append(lines[:2:2], lines[3:]...), []byte("\n"))
		keys := map[string][]byte{"good": good, "malformed": malformed, "locked": sshtest.NewLockedKeyFile(GinkgoTB())}
		for name, key := range keys {
			Expect(apiServer.Create(withTimeout(ctx), credential(namespace, name, key))).To(Succeed())
		}
		// All in one, too: the good key is tried, the others complained about.
		Expect(apiServer.Create(withTimeout(ctx), quick("good").Namespace(namespace).Secrets("locked", "malformed", "good").
			EndpointWith(m.endpoint("a")).Obj())).To(Succeed())
		for i, name := range []string{"malformed", "locked"} {
			Expect(apiServer.Create(withTimeout(ctx), quick(name).Namespace(namespace).Secrets(name).
				Endpoint("a", fmt.Sprintf("127.0.0.%d", 2+i)).Obj())).To(Succeed())
		}
		refusing := startMachine()
		refusing.Set(sshtest.Behavior{Fault: sshtest.FaultPasswordOnly})
		Expect(apiServer.Create(withTimeout(ctx), quick("refused").Namespace(namespace).Secrets("good").EndpointWith(refusing.endpoint("a")).Obj())).To(Succeed())

		Eventually(get(ctx, namespace, "good")).Should(haveCondition(v1alpha1.ConditionReady, isTrue, "AllHealthy"))
		Eventually(get(ctx, namespace, "malformed")).Should(haveCondition(v1alpha1.ConditionCredentialsValid, isFalse, "PrivateKeyMalformed"))
		Eventually(get(ctx, namespace, "locked")).Should(haveCondition(v1alpha1.ConditionCredentialsValid, isFalse, "PrivateKeyHasPassphrase"))
		Eventually(get(ctx, namespace, "refused")).Should(haveCondition(v1alpha1.ConditionAuthenticated, isFalse, "LoginRefused"))
		Eventually(func() (int, error) {
			var list eventsv1.EventList
			err := apiServer.List(withTimeout(ctx), &list, client.InNamespace(namespace))
			return len(list.Items), err
		}).Should(BeNumerically(">=", 4))
		o.stop()

		for place, text := range everythingShown(ctx, o, namespace) {
			Expect(text).NotTo(BeEmpty(), place)
			for name, key := range keys {
				for _, secret := range shapes(key) {
					if strings.Contains(text, secret) {
						Fail(fmt.Sprintf("%s shows %q of the %s key", place, secret, name))
					}
				}
			}
		}
	})
})

// total sums a counter over its labels.
func total(o *operator, name string) float64 {
	GinkgoHelper()
	sum := 0.0
	for _, family := range gather(o) {
		if family.GetName() == name {
			for _, metric := range family.GetMetric() {
				sum += metric.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func gather(o *operator) []*dto.MetricFamily {
	GinkgoHelper()
	families, err := o.registry.Gather()
	Expect(err).NotTo(HaveOccurred())
	return families
}

// everythingShown is all text that the operator made for others to see.
func everythingShown(ctx context.Context, o *operator, namespace string) map[string]string {
	GinkgoHelper()
	shown := map[string]string{"log": o.log.String(), "metrics": fmt.Sprint(gather(o))}
	for place, list := range map[string]client.ObjectList{
		"NixBuilders": &v1alpha1.NixBuilderList{}, "events": &eventsv1.EventList{}, "ConfigMaps": &corev1.ConfigMapList{},
	} {
		Expect(apiServer.List(withTimeout(ctx), list, client.InNamespace(namespace))).To(Succeed())
		text, err := json.Marshal(list)
		Expect(err).NotTo(HaveOccurred())
		shown[place] = string(text)
	}
	return shown
}

// shapes returns what must not be seen of a private key file: every line of its
// body, and the file and its content as bytes, base64 and hexadecimal digits,
// also as a dump of memory shows them.
func shapes(file []byte) []string {
	const recognisable = 16
	var all []string
	for _, line := range strings.Split(string(file), "\n") {
		if len(line) >= recognisable && !strings.HasPrefix(line, "-----") {
			all = append(all, line, line[:recognisable], line[len(line)-recognisable:])
		}
	}
	contents := [][]byte{file}
	if block, _ := pem.Decode(file); block != nil {
		// The end holds the secret part; the beginning is the same in every key.
		contents = append(contents, block.Bytes[len(block.Bytes)/2:])
	}
	const dumped = 6 // bytes that stand side by side in some row, wherever rows begin
	for i := range len(file) - dumped {
		all = append(all, fmt.Sprintf("% x", file[i:i+dumped]))
	}
	for _, content := range contents {
		all = append(all, string(content), base64.StdEncoding.EncodeToString(content), hex.EncodeToString(content))
	}
	return all
}
