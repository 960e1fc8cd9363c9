// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package api

import (
	"encoding/json"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

// table asks the API server for a NixBuilder as kubectl get does.
func table(ctx SpecContext, name string) *metav1.Table {
	GinkgoHelper()
	restConfig := rest.CopyConfig(config)
	restConfig.GroupVersion = &v1alpha1.GroupVersion
	restConfig.APIPath = "/apis"
	restConfig.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	restClient, err := rest.RESTClientFor(restConfig)
	Expect(err).NotTo(HaveOccurred())
	body, err := restClient.Get().Namespace(metav1.NamespaceDefault).Resource("nixbuilders").Name(name).
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").
		DoRaw(withTimeout(ctx))
	Expect(err).NotTo(HaveOccurred())
	result := &metav1.Table{}
	Expect(json.Unmarshal(body, result)).To(Succeed())
	return result
}

var _ = Describe("NixBuilder", func() {
	It("gets its defaults from the API server", func(ctx SpecContext) {
		object := valid()
		Expect(apiServer.Create(withTimeout(ctx), object)).To(Succeed())

		spec := object.Object["spec"].(map[string]any)
		Expect(spec).To(HaveKeyWithValue("discovery", "Enabled"))
		Expect(spec).To(HaveKeyWithValue("hostKeyPolicy", "Strict"))
		Expect(spec).To(HaveKeyWithValue("probe", map[string]any{
			"intervalSeconds": int64(30), "timeoutSeconds": int64(10), "failureThreshold": int64(3), "canary": "Disabled", "keptConnection": "Enabled",
		}))
		Expect(spec["endpoints"].([]any)[0]).To(HaveKeyWithValue("port", int64(22)))
		Expect(spec).NotTo(HaveKey("maxJobs"))
		Expect(spec).NotTo(HaveKey("speedFactor"))
	})

	It("is what the test builders make", func(ctx SpecContext) {
		builder := builders.MakeNixBuilder("as-built").Endpoint("a", "a.example.com").Obj()
		want := builder.Spec.DeepCopy()
		Expect(apiServer.Create(withTimeout(ctx), builder)).To(Succeed())
		Expect(equality.Semantic.DeepEqual(&builder.Spec, want)).To(BeTrue(), "made: %+v\nstored: %+v", want, &builder.Spec)
	})

	It("shows its columns", func(ctx SpecContext) {
		builder := builders.MakeNixBuilder("columns").Endpoint("a", "a.example.com").Obj()
		Expect(apiServer.Create(withTimeout(ctx), builder)).To(Succeed())
		builder.Status = v1alpha1.NixBuilderStatus{
			Conditions: []metav1.Condition{{
				Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDegraded,
				Message: "a (a.example.com:22): not well", LastTransitionTime: metav1.Now(),
			}},
			TotalEndpoints: 3, HealthyEndpoints: 2, Healthy: "2/3", Cordoned: "1/3",
			Systems: "aarch64-darwin,x86_64-darwin", Jobs: 8, Nix: "2.26.3",
		}
		Expect(apiServer.Status().Update(withTimeout(ctx), builder)).To(Succeed())

		result := table(ctx, "columns")
		var names, wide []string
		for _, column := range result.ColumnDefinitions {
			if column.Priority > 0 {
				wide = append(wide, column.Name)
				continue
			}
			names = append(names, column.Name)
		}
		Expect(names).To(Equal([]string{"Name", "Healthy", "Systems", "Jobs", "Nix", "Ready", "Reason", "Cordoned", "Age"}))
		Expect(wide).To(Equal([]string{"User", "Message"}), "with -o wide")
		Expect(result.Rows).To(HaveLen(1))
		Expect(result.Rows[0].Cells[:8]).To(Equal([]any{
			"columns", "2/3", "aarch64-darwin,x86_64-darwin", float64(8), "2.26.3", "True", "Degraded", "1/3",
		}))
		Expect(result.Rows[0].Cells).To(ContainElements("nix", "a (a.example.com:22): not well"))
	})

	It("has a short name and a category", func(ctx SpecContext) {
		restConfig := rest.CopyConfig(config)
		restConfig.GroupVersion = &v1alpha1.GroupVersion
		restConfig.APIPath = "/apis"
		restConfig.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
		restClient, err := rest.RESTClientFor(restConfig)
		Expect(err).NotTo(HaveOccurred())
		body, err := restClient.Get().DoRaw(withTimeout(ctx))
		Expect(err).NotTo(HaveOccurred())
		resources := &metav1.APIResourceList{}
		Expect(json.Unmarshal(body, resources)).To(Succeed())
		Expect(resources.APIResources).To(ContainElement(And(
			HaveField("Kind", "NixBuilder"),
			HaveField("ShortNames", ConsistOf("nxb")),
			HaveField("Categories", ConsistOf("nix")),
			HaveField("Namespaced", true),
		)))
	})
})
