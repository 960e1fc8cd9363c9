// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/chart"
	"nixbuilder.io/nix-builder-operator/test/envtest"
)

const root = "../../.."

var (
	environment *envtest.Environment
	apiServer   client.Client
	kubeconfig  string
	tools       = chart.NewTools(root)
)

func TestChart(t *testing.T) {
	environment = envtest.ForTest(t, envtest.Options{CRDs: []string{}})
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(apiextensionsv1.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	var err error
	if apiServer, err = environment.Client(scheme); err != nil {
		t.Fatal(err)
	}
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := environment.WriteKubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	RegisterFailHandler(Fail)
	RunSpecs(t, "Chart")
}

// helm runs helm against the API server and returns what it printed.
func helm(args ...string) string {
	GinkgoHelper()
	stdout, stderr, err := tools.Run(GinkgoTB(), "helm", append(args, "--kubeconfig", kubeconfig)...)
	Expect(err).NotTo(HaveOccurred(), "helm %s:\n%s", strings.Join(args, " "), stderr)
	return stdout
}

// install installs or upgrades the release with some values.
func install(verb string, values ...string) string {
	GinkgoHelper()
	args := []string{verb, chart.Release, tools.Chart(), "--namespace", chart.Namespace}
	if verb == "install" {
		args = append(args, "--create-namespace")
	}
	for _, value := range values {
		args = append(args, "--set", value)
	}
	return helm(args...)
}

func uninstall() {
	GinkgoHelper()
	helm("uninstall", chart.Release, "--namespace", chart.Namespace)
}

// apply gives manifests to kubectl apply.
func apply(manifests string, args ...string) {
	GinkgoHelper()
	runKubectl(manifests, append([]string{"apply", "--server-side"}, args...)...)
}

// runKubectl runs kubectl on manifests.
func runKubectl(manifests string, args ...string) {
	GinkgoHelper()
	cmd := exec.Command(environment.Kubectl(), append(args, "--kubeconfig", kubeconfig, "--cache-dir", filepath.Dir(kubeconfig), "-f", "-")...)
	cmd.Stdin = strings.NewReader(manifests)
	out, err := cmd.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), "%s", out)
}

// ensureNamespace makes a namespace that enforces a Pod Security Standard.
func ensureNamespace(ctx SpecContext, name, standard string) {
	GinkgoHelper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pod-security.kubernetes.io/enforce": standard}}}
	if err := apiServer.Create(ctx, namespace); !apierrors.IsAlreadyExists(err) {
		Expect(err).NotTo(HaveOccurred())
	}
}

// access is something that the operator's account may or may not do.
type access struct {
	namespace, verb, group, resource, name string
}

// may asks the API server whether RBAC allows it.
func (a access) may(ctx SpecContext) bool {
	GinkgoHelper()
	resource, sub, _ := strings.Cut(a.resource, "/")
	const accounts = "system:serviceaccounts"
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:   "system:serviceaccount:" + chart.Namespace + ":" + chart.Release,
		Groups: []string{accounts, accounts + ":" + chart.Namespace, "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: a.namespace, Verb: a.verb, Group: a.group, Resource: resource, Subresource: sub, Name: a.name,
		},
	}}
	Expect(apiServer.Create(ctx, review)).To(Succeed())
	return review.Status.Allowed
}

// expectAccess compares all that may matter with what is wanted. RBAC follows
// a change of roles with a short delay.
func expectAccess(ctx SpecContext, want []access) {
	GinkgoHelper()
	var all []access
	for _, namespace := range []string{"ci", "elsewhere", chart.Namespace} {
		for _, a := range permissions {
			a.namespace = namespace
			all = append(all, a)
		}
	}
	Eventually(func() []access {
		return slices.DeleteFunc(slices.Clone(all), func(a access) bool { return !a.may(ctx) })
	}).WithTimeout(patience).WithContext(ctx).Should(ConsistOf(want))
}
