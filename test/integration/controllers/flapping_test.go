// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

var _ = Describe("A machine that comes and goes", func() {
	const (
		// period is the time between two changes: fifteen losses in a minute.
		period = 2 * time.Second
		length = 40 * time.Second
	)

	It("floods neither events nor status nor ConfigMap", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		key, _ := sshtest.NewKeyFile(GinkgoTB())
		Expect(apiServer.Create(withTimeout(ctx), credential(namespace, builders.DefaultSecret, key))).To(Succeed())
		steady, flapping := startMachine(), startMachine()
		startOperator("", namespace)
		object := builders.MakeNixBuilder("linux").Namespace(namespace).
			EndpointWith(steady.endpoint("steady")).EndpointWith(flapping.endpoint("flapping")).
			Change(func(b *v1alpha1.NixBuilder) {
				b.Spec.Probe.IntervalSeconds, b.Spec.Probe.TimeoutSeconds, b.Spec.Probe.FailureThreshold = 5, 5, 1
			}).Obj()
		Expect(apiServer.Create(withTimeout(ctx), object)).To(Succeed())
		state := func() (v1alpha1.EndpointState, error) {
			builder := &v1alpha1.NixBuilder{}
			err := apiServer.Get(withTimeout(ctx), client.ObjectKeyFromObject(object), builder)
			if endpoint := builder.Status.Endpoint("flapping"); endpoint != nil {
				return endpoint.State, err
			}
			return "", err
		}
		lines := func() (int, error) {
			published := &corev1.ConfigMap{}
			err := apiServer.Get(withTimeout(ctx), client.ObjectKey{Namespace: namespace, Name: "nix-machines"}, published)
			return strings.Count(published.Data["machines"], "ssh-ng://"), err
		}
		Eventually(state).Should(Equal(v1alpha1.EndpointHealthy))
		Eventually(lines).Should(Equal(2))

		begin, lost, losses := time.Now(), false, 0
		changes := time.NewTicker(period)
		defer changes.Stop()
		for time.Since(begin) < length {
			<-changes.C
			if lost = !lost; lost {
				flapping.Set(sshtest.Behavior{Fault: sshtest.FaultHangUp})
				flapping.CloseConnections()
				losses++
			} else {
				flapping.Set(sshtest.Behavior{Exec: flapping.run})
			}
		}
		flapping.Set(sshtest.Behavior{Exec: flapping.run})
		end := time.Now()
		Eventually(state).Should(Equal(v1alpha1.EndpointHealthy))
		Eventually(lines).Should(Equal(2))

		seconds := int(end.Sub(begin).Seconds()) + 1
		writes := writesIn(namespace, begin, end)
		AddReportEntry("writes", fmt.Sprintf("%v after %d losses", writes, losses), ReportEntryVisibilityAlways)
		Expect(writes["nixbuilders/status"]).To(And(BeNumerically(">=", 4), BeNumerically("<=", 10+seconds/4)), "writes of status")
		Expect(writes["configmaps"]).To(And(BeNumerically(">=", 2), BeNumerically("<=", 6+seconds/5)), "writes of the ConfigMap")
		// Healthy, lost, and with what follows; each is written when it comes first
		// and when it becomes a series.
		Expect(writes["events"]).To(BeNumerically("<=", 12), "writes of events")
		Expect(eventsOf(ctx, namespace)).To(HaveEach(BeNumerically("<=", 2)), "events of one reason, other than counted")
	})
})

// writesIn counts what was written in a namespace, by resource.
func writesIn(namespace string, from, to time.Time) map[string]int {
	GinkgoHelper()
	all, err := environment.Writes()
	Expect(err).NotTo(HaveOccurred())
	counts := map[string]int{}
	for _, write := range all {
		if write.Namespace == namespace && !write.Time.Before(from) && write.Time.Before(to) {
			counts[write.Resource]++
		}
	}
	return counts
}

// eventsOf counts the event objects of a namespace by machine and reason.
func eventsOf(ctx context.Context, namespace string) map[string]int {
	GinkgoHelper()
	var list eventsv1.EventList
	Expect(apiServer.List(withTimeout(ctx), &list, client.InNamespace(namespace))).To(Succeed())
	counts := map[string]int{}
	for _, event := range list.Items {
		counts[event.Regarding.FieldPath+" "+event.Reason]++
	}
	return counts
}
