// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

// publisher is a machines reconciler over a client, and the events it made.
type publisher struct {
	*machines.Reconciler
	events chan string
}

func newPublisher(c client.Client) *publisher {
	GinkgoHelper()
	metrics, err := machines.NewMetrics(prometheus.NewRegistry())
	Expect(err).NotTo(HaveOccurred())
	recorded := make(chan string, 100)
	return &publisher{events: recorded, Reconciler: machines.NewReconciler(machines.Options{
		Client: c, Uncached: apiServer, Recorder: &events.FakeRecorder{Events: recorded}, Metrics: metrics,
	})}
}

func (p *publisher) publish(ctx SpecContext, namespace string) {
	GinkgoHelper()
	_, err := p.Reconcile(withTimeout(ctx), machines.RequestFor(namespace))
	Expect(err).NotTo(HaveOccurred())
}

func published(ctx SpecContext, namespace string) *corev1.ConfigMap {
	GinkgoHelper()
	found := &corev1.ConfigMap{}
	Expect(apiServer.Get(withTimeout(ctx), machines.RequestFor(namespace).NamespacedName, found)).To(Succeed())
	return found
}

// ready is a builder with healthy endpoints at <builder>-<n>.example.
func ready(namespace, name string, endpoints int) *builders.NixBuilderWrapper {
	w := builders.MakeNixBuilder(name).Namespace(namespace).Systems("x86_64-linux", "i686-linux").
		Features("kvm", "big-parallel", "benchmark").Condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted")
	for n := range endpoints {
		endpoint := v1alpha1.Endpoint{
			Name: fmt.Sprintf("e%d", n), Host: fmt.Sprintf("%s-%d.example", name, n), Port: 22,
			HostKeys: []string{builders.HostKey(name + fmt.Sprint(n)), builders.HostKey(fmt.Sprint(n) + name)},
		}
		w.EndpointWith(endpoint).EndpointStatus(v1alpha1.EndpointStatus{
			Name: endpoint.Name, Address: endpoint.Address(), State: v1alpha1.EndpointHealthy,
			LastTransitionTime: &metav1.Time{Time: time.Unix(1_700_000_000, 0)},
		})
	}
	return w.Change(func(b *v1alpha1.NixBuilder) {
		now := metav1.Now()
		for i := range b.Status.Conditions {
			b.Status.Conditions[i].LastTransitionTime = now
		}
	})
}

// shuffled lists NixBuilders in another order every time, and sets inside them
// too. With hashless it also keeps quiet about what the ConfigMap was made of.
func shuffled(hashless bool) client.Client {
	random := rand.New(rand.NewPCG(uint64(GinkgoRandomSeed()), 0))
	return interceptor.NewClient(apiServer, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if err := c.List(ctx, list, opts...); err != nil {
				return err
			}
			items := list.(*v1alpha1.NixBuilderList).Items
			random.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
			for i := range items {
				endpoints := items[i].Spec.Endpoints
				random.Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
				sets := [][]string{items[i].Spec.Systems, items[i].Spec.SupportedFeatures}
				for j := range endpoints {
					sets = append(sets, endpoints[j].HostKeys)
				}
				for _, set := range sets {
					random.Shuffle(len(set), func(i, j int) { set[i], set[j] = set[j], set[i] })
				}
			}
			return nil
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			err := c.Get(ctx, key, obj, opts...)
			if hashless {
				delete(obj.GetAnnotations(), machines.ContentHashAnnotation)
			}
			return err
		},
	})
}

var _ = Describe("ConfigMap nix-machines", func() {
	It("keeps its resourceVersion over 100 reconciles with shuffled inputs", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		for _, name := range []string{"one", "two", "three"} {
			create(ctx, ready(namespace, name, 5).Obj())
		}
		skipping, applying := newPublisher(shuffled(false)), newPublisher(shuffled(true))
		skipping.publish(ctx, namespace)
		first := published(ctx, namespace)
		Expect(strings.Count(first.Data[machines.KeyMachines], "\n")).To(Equal(15))
		for range 100 {
			skipping.publish(ctx, namespace)
		}
		// Even without the hash to tell, the same bytes are applied.
		for range 10 {
			applying.publish(ctx, namespace)
		}
		Expect(published(ctx, namespace)).To(Equal(first))
	})

	It("belongs to every NixBuilder of the namespace, without a finalizer", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		one, two := create(ctx, ready(namespace, "one", 1).Obj()), create(ctx, ready(namespace, "two", 1).Obj())
		p := newPublisher(apiServer)
		p.publish(ctx, namespace)
		found := published(ctx, namespace)
		Expect(found.Labels).To(HaveKeyWithValue(machines.ManagedByLabel, machines.ManagedBy))
		Expect(found.Finalizers).To(BeEmpty())
		reference := func(builder *v1alpha1.NixBuilder) metav1.OwnerReference {
			return metav1.OwnerReference{APIVersion: "nixbuilder.io/v1alpha1", Kind: "NixBuilder", Name: builder.Name, UID: builder.UID}
		}
		Expect(found.OwnerReferences).To(ConsistOf(reference(one), reference(two)))

		Expect(apiServer.Delete(withTimeout(ctx), two)).To(Succeed())
		p.publish(ctx, namespace)
		found = published(ctx, namespace)
		Expect(found.OwnerReferences).To(ConsistOf(reference(one)))
		Expect(found.Data[machines.KeyMachines]).NotTo(ContainSubstring("two"))

		By("deleting the last one, where there is no garbage collector")
		Expect(apiServer.Delete(withTimeout(ctx), one)).To(Succeed())
		p.publish(ctx, namespace)
		p.publish(ctx, namespace)
		err := apiServer.Get(withTimeout(ctx), client.ObjectKeyFromObject(found), found)
		Expect(client.IgnoreNotFound(err)).To(Succeed())
		Expect(err).To(HaveOccurred())
	})

	It("holds nothing of another namespace", func(ctx SpecContext) {
		mine, theirs := newNamespace(ctx), newNamespace(ctx)
		create(ctx, ready(mine, "mine", 2).Secrets("key-of-mine").Obj())
		create(ctx, ready(theirs, "theirs", 2).Secrets("key-of-theirs").Obj())
		p := newPublisher(apiServer)
		p.publish(ctx, mine)
		p.publish(ctx, theirs)
		for namespace, names := range map[string][2]string{mine: {"mine", "theirs"}, theirs: {"theirs", "mine"}} {
			found := published(ctx, namespace)
			Expect(found.OwnerReferences).To(HaveLen(1))
			Expect(found.Data[machines.KeyMachines]).To(ContainSubstring(names[0]))
			for key, text := range found.Data {
				Expect(text).NotTo(ContainSubstring(names[1]), "key %s of namespace %s", key, namespace)
			}
		}
	})

	It("is left alone where a user has made it, and published once it is gone", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		create(ctx, ready(namespace, "one", 1).Obj())
		users := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: machines.ConfigMapName},
			Data:       map[string]string{machines.KeyMachines: "ssh-ng://mine\n"},
		}
		Expect(apiServer.Create(withTimeout(ctx), users)).To(Succeed())
		p := newPublisher(apiServer)
		for range 3 {
			p.publish(ctx, namespace)
		}
		Expect(published(ctx, namespace)).To(Equal(users))
		Expect(p.events).To(Receive(HavePrefix("Warning ConfigMapConflict ")))
		Expect(p.events).NotTo(Receive())

		Expect(apiServer.Delete(withTimeout(ctx), users)).To(Succeed())
		p.publish(ctx, namespace)
		Expect(published(ctx, namespace).Labels).To(HaveKeyWithValue(machines.ManagedByLabel, machines.ManagedBy))
	})

	It("has what the operator applies and what others have added", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		create(ctx, ready(namespace, "one", 1).Obj())
		p := newPublisher(apiServer)
		p.publish(ctx, namespace)
		found := published(ctx, namespace)
		want := found.Data[machines.KeyMachines]
		found.Data[machines.KeyMachines] = "ssh-ng://evil\n"
		found.Data["notes"] = "mine"
		found.Labels["team"] = "ci"
		Expect(apiServer.Update(withTimeout(ctx), found, client.FieldOwner("somebody"))).To(Succeed())
		p.publish(ctx, namespace)
		found = published(ctx, namespace)
		Expect(found.Data).To(HaveKeyWithValue(machines.KeyMachines, want))
		Expect(found.Data).To(HaveKeyWithValue("notes", "mine"))
		Expect(found.Labels).To(HaveKeyWithValue("team", "ci"))
	})

	It("keeps its last content where the builders do not fit", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		create(ctx, ready(namespace, "small", 1).Obj())
		p := newPublisher(apiServer)
		p.publish(ctx, namespace)
		first := published(ctx, namespace)
		large := ready(namespace, "large", 60).Change(func(b *v1alpha1.NixBuilder) {
			for i := range b.Spec.Endpoints {
				for k := range 6 {
					blob := append([]byte("\x00\x00\x00\x07ssh-rsa"), strings.Repeat(fmt.Sprint(k), 1000)...)
					key := "ssh-rsa " + base64.StdEncoding.EncodeToString(blob)
					b.Spec.Endpoints[i].HostKeys = append(b.Spec.Endpoints[i].HostKeys, key)
				}
			}
		}).Obj()
		create(ctx, large)
		for range 3 {
			p.publish(ctx, namespace)
		}
		Expect(published(ctx, namespace)).To(Equal(first))
		for range 2 { // one for each builder, once
			Expect(p.events).To(Receive(HavePrefix("Warning ConfigMapTooLarge ")))
		}
		Expect(p.events).NotTo(Receive())

		Expect(apiServer.Delete(withTimeout(ctx), large)).To(Succeed())
		create(ctx, ready(namespace, "medium", 5).Obj())
		p.publish(ctx, namespace)
		Expect(published(ctx, namespace).Data[machines.KeyMachines]).To(ContainSubstring("medium"))
	})

	It("is not made in a namespace that is being deleted", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		create(ctx, ready(namespace, "one", 1).Obj())
		Expect(apiServer.Delete(withTimeout(ctx), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})).To(Succeed())
		newPublisher(apiServer).publish(ctx, namespace)
		var list corev1.ConfigMapList
		Expect(apiServer.List(withTimeout(ctx), &list, client.InNamespace(namespace))).To(Succeed())
		Expect(list.Items).To(BeEmpty())
	})

	It("lists for dispatchers what it does not list for ssh", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		create(ctx, ready(namespace, "up", 1).Obj())
		create(ctx, ready(namespace, "down", 1).Change(func(b *v1alpha1.NixBuilder) {
			b.Status.Endpoints[0].State = v1alpha1.EndpointUnhealthy
			b.Status.Endpoints[0].Reason = "ConnectionRefused"
		}).Obj())
		newPublisher(apiServer).publish(ctx, namespace)
		found := published(ctx, namespace)
		Expect(found.Data[machines.KeyMachines]).NotTo(ContainSubstring("down"))
		document, err := inventory.Decode([]byte(found.Data[machines.KeyBuilders]))
		Expect(err).NotTo(HaveOccurred())
		Expect(document.Builders).To(HaveLen(2))
		Expect(document.Builders[0].State).To(Equal(inventory.StateUnhealthy))
		Expect(document.Builders[0].Reason).To(Equal("ConnectionRefused"))
	})
})
