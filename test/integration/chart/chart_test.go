// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/chart"
)

// patience bounds what the API server does behind a request.
const patience = time.Minute

const crdName = "nixbuilders.nixbuilder.io"

// linux is a NixBuilder that is valid, and that nobody looks after.
func linux() *v1alpha1.NixBuilder {
	return builders.MakeNixBuilder("linux").Namespace("ci").Endpoint("linux-1", "linux-1.example.com").Obj()
}

// needed is what the operator needs where NixBuilders may be; leading is for
// its own namespace; permissions are these and what it must not have.
var (
	needed = []access{
		{verb: "list", group: v1alpha1.GroupVersion.Group, resource: "nixbuilders"},
		{verb: "watch", group: v1alpha1.GroupVersion.Group, resource: "nixbuilders"},
		{verb: "patch", group: v1alpha1.GroupVersion.Group, resource: "nixbuilders/status"},
		{verb: "get", resource: "secrets"},
		{verb: "watch", resource: "configmaps", name: "nix-machines"},
		{verb: "patch", resource: "configmaps", name: "nix-machines"},
		{verb: "create", group: "events.k8s.io", resource: "events"},
	}
	leading = []access{
		{verb: "create", group: "coordination.k8s.io", resource: "leases"},
		{verb: "update", group: "coordination.k8s.io", resource: "leases"},
		{verb: "create", resource: "events"},
	}
	never = []access{
		{verb: "list", resource: "secrets"},
		{verb: "watch", resource: "secrets"},
		{verb: "create", resource: "secrets"},
		{verb: "update", group: v1alpha1.GroupVersion.Group, resource: "nixbuilders"},
		{verb: "delete", group: v1alpha1.GroupVersion.Group, resource: "nixbuilders"},
		{verb: "watch", resource: "configmaps"},
		{verb: "patch", resource: "configmaps"},
		{verb: "create", resource: "pods"},
		{verb: "create", resource: "serviceaccounts/token"},
		{verb: "create", group: "rbac.authorization.k8s.io", resource: "rolebindings"},
	}
	permissions = slices.Concat(needed, leading, never)
)

func in(namespace string, list ...access) []access {
	var out []access
	for _, a := range list {
		a.namespace = namespace
		out = append(out, a)
	}
	return out
}

// everywhere is the access of an operator that looks at all namespaces.
func everywhere() []access {
	own := in(chart.Namespace, leading...)
	return slices.Concat(in("ci", needed...), in("elsewhere", needed...), in(chart.Namespace, needed...), own)
}

var _ = Describe("The release", Ordered, func() {
	var notes, kustomized string

	BeforeAll(func(ctx SpecContext) {
		for _, name := range []string{"ci", "elsewhere"} {
			ensureNamespace(ctx, name, "restricted")
		}
	})

	It("installs, and says what to type next", func(ctx SpecContext) {
		notes = strings.TrimSpace(install("install"))
		Expect(notes).To(HaveSuffix("\nkubectl --namespace default get nixbuilders --watch"))
		Expect(apiServer.Get(ctx, client.ObjectKey{Namespace: chart.Namespace, Name: chart.Release}, &appsv1.Deployment{})).To(Succeed())
	})

	It("serves the API", func(ctx SpecContext) {
		expectCRD(ctx)
		Expect(apiServer.Create(ctx, linux())).To(Succeed())
	})

	It("has notes whose commands work when they are typed", func(ctx SpecContext) {
		_, next, found := strings.Cut(notes, "\nNext, give it the key to log in to builders with:\n")
		Expect(found).To(BeTrue(), notes)
		var hostKey string
		for paragraph := range strings.SplitSeq(next, "\n\n") {
			paragraph = strings.TrimSpace(paragraph)
			switch program, _, _ := strings.Cut(paragraph, " "); program {
			case "ssh-keyscan":
				hostKey = strings.TrimSpace(typeCommands(paragraph))
			case "kubectl":
				// The key is put in by hand, once it has been compared.
				typeCommands(strings.NewReplacer("ssh-ed25519 AAAA...", hostKey, " --watch", "").Replace(paragraph))
			}
		}
		builder := &v1alpha1.NixBuilder{}
		Expect(apiServer.Get(ctx, client.ObjectKey{Namespace: "default", Name: "linux"}, builder)).To(Succeed())
		Expect(builder.Spec.Endpoints[0].HostKeys).To(ConsistOf(builders.HostKey("any")))
		secret := &corev1.Secret{}
		Expect(apiServer.Get(ctx, client.ObjectKey{Namespace: "default", Name: "builder-key"}, secret)).To(Succeed())
		Expect(secret.Type).To(Equal(corev1.SecretTypeSSHAuth))
		Expect(secret.Labels).To(HaveKeyWithValue(v1alpha1.CredentialLabel, "true"))
	})

	It("takes the NixBuilder of the documentation", func() {
		for _, manifest := range regexp.MustCompile("(?ms)^```yaml\n(apiVersion: nixbuilder.io/.*?)^```$").FindAllStringSubmatch(documentation(), -1) {
			apply(manifest[1], "--dry-run=server", "--validate=strict")
		}
	})

	It("gives the operator what it needs in every namespace, and no more", func(ctx SpecContext) {
		expectAccess(ctx, everywhere())
	})

	It("has pods that the restricted standard lets in", func(ctx SpecContext) {
		deployment := &appsv1.Deployment{}
		Expect(apiServer.Get(ctx, client.ObjectKey{Namespace: chart.Namespace, Name: chart.Release}, deployment)).To(Succeed())
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "copy", Namespace: "ci", Labels: deployment.Spec.Template.Labels},
			Spec:       deployment.Spec.Template.Spec,
		}
		Expect(apiServer.Create(ctx, pod, client.DryRunAll)).To(Succeed())
	})

	It("upgrades to a few namespaces, where the operator then has Roles only", func(ctx SpecContext) {
		install("upgrade", "watchNamespaces={ci}", "replicas=3")
		bindings := &rbacv1.ClusterRoleBindingList{}
		Expect(apiServer.List(ctx, bindings, ofRelease())).To(Succeed())
		Expect(bindings.Items).To(BeEmpty())
		expectAccess(ctx, slices.Concat(in("ci", needed...), in(chart.Namespace, leading...)))
	})

	It("upgrades back", func(ctx SpecContext) {
		install("upgrade", "podDisruptionBudget.enabled=true", "networkPolicy.enabled=true")
		roles := &rbacv1.RoleList{}
		Expect(apiServer.List(ctx, roles, ofRelease(), client.InNamespace("ci"))).To(Succeed())
		Expect(roles.Items).To(BeEmpty())
	})

	It("is uninstalled without the CRD and the NixBuilders", func(ctx SpecContext) {
		uninstall()
		for _, list := range []client.ObjectList{
			&appsv1.DeploymentList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}, &rbacv1.RoleList{},
			&rbacv1.RoleBindingList{}, &rbacv1.ClusterRoleList{}, &rbacv1.ClusterRoleBindingList{},
		} {
			Expect(apiServer.List(ctx, list, ofRelease())).To(Succeed())
			Expect(list).To(HaveField("Items", BeEmpty()), "%T", list)
		}
		Expect(apiServer.Get(ctx, client.ObjectKey{Name: crdName}, &apiextensionsv1.CustomResourceDefinition{})).To(Succeed())
		Expect(apiServer.Get(ctx, client.ObjectKey{Namespace: "ci", Name: "linux"}, &v1alpha1.NixBuilder{})).To(Succeed())
	})

	It("is installed again over what was kept", func(ctx SpecContext) {
		install("install")
		Expect(apiServer.Get(ctx, client.ObjectKey{Namespace: "ci", Name: "linux"}, &v1alpha1.NixBuilder{})).To(Succeed())
	})

	It("takes the CRD along if told to", func(ctx SpecContext) {
		install("upgrade", "crds.keep=false")
		uninstall()
		Eventually(func() bool {
			return apierrors.IsNotFound(apiServer.Get(ctx, client.ObjectKey{Name: crdName}, &apiextensionsv1.CustomResourceDefinition{}))
		}).WithTimeout(patience).WithContext(ctx).Should(BeTrue())
	})

	It("can be installed by kustomize instead", func(ctx SpecContext) {
		manifests, stderr, err := tools.Run(GinkgoTB(), "kustomize", "build", root+"/config/default")
		Expect(err).NotTo(HaveOccurred(), stderr)
		apply(manifests)
		kustomized = manifests
		expectCRD(ctx)
		Expect(apiServer.Create(ctx, linux())).To(Succeed())
		expectAccess(ctx, everywhere())
	})

	AfterAll(func() {
		// There is no controller that would bring the namespace to its end.
		remove := slices.DeleteFunc(strings.Split(kustomized, "\n---\n"), func(manifest string) bool {
			return strings.Contains(manifest, "\nkind: Namespace\n")
		})
		runKubectl(strings.Join(remove, "\n---\n"), "delete", "--ignore-not-found")
	})

	// What docs/install.md says of installs that fail.
	DescribeTable("refuses to install, and says why",
		func(want string, args ...string) {
			_, stderr, err := tools.Run(GinkgoTB(), "helm", append([]string{
				"install", "other", tools.Chart(), "--namespace", "other", "--create-namespace", "--kubeconfig", kubeconfig,
			}, args...)...)
			Expect(err).To(HaveOccurred())
			Expect(stderr).To(ContainSubstring(want))
			Expect(documentation()).To(ContainSubstring(want))
		},
		Entry("over a CRD of somebody else", "exists and cannot be imported into the current release"),
		Entry("into a namespace that does not exist", `namespaces "nowhere" not found`, "--set", "crds.enabled=false,watchNamespaces={nowhere}"),
	)
})

func documentation() string {
	GinkgoHelper()
	text, err := os.ReadFile(root + "/docs/install.md")
	Expect(err).NotTo(HaveOccurred())
	return string(text)
}

// ofRelease selects what the chart has made.
func ofRelease() client.ListOption {
	return client.MatchingLabels{"app.kubernetes.io/instance": chart.Release, "app.kubernetes.io/managed-by": "Helm"}
}

// expectCRD waits until the API is served.
func expectCRD(ctx SpecContext) {
	GinkgoHelper()
	Eventually(func() error {
		return apiServer.List(ctx, &v1alpha1.NixBuilderList{})
	}).WithTimeout(patience).WithContext(ctx).Should(Succeed())
}

// typeCommands runs commands as somebody would who has a key pair in the
// current directory and a builder that answers ssh-keyscan, and returns what
// they print.
func typeCommands(commands string) string {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	keyscan := "#!/bin/sh\necho 'linux-1.example.com " + builders.HostKey("any") + "'\n"
	Expect(os.WriteFile(filepath.Join(dir, "ssh-keyscan"), []byte(keyscan), 0o700)).To(Succeed())
	Expect(os.WriteFile(filepath.Join(dir, "id_ed25519"), []byte("not a key, but nobody looks"), 0o600)).To(Succeed())
	Expect(os.Symlink(environment.Kubectl(), filepath.Join(dir, "kubectl"))).To(Succeed())
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", commands)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "KUBECONFIG="+kubeconfig, "HOME="+dir)
	out, err := cmd.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), "%s", out)
	return string(out)
}
