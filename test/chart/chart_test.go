// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Sets of values that the tests render.
const (
	defaults   = "{}"
	everything = `
replicas: 3
commonLabels: {team: ci}
image: {repository: registry.example.com/nbo, digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}
imagePullSecrets: [{name: pull}]
serviceAccount: {annotations: {example.com/role: nix}}
log: {level: debug, format: console}
keptConnections: false
extraArgs: [--probe-concurrency=64]
metrics:
  access: Token
  port: 9443
  certificateSecret: metrics-tls
  service: {annotations: {example.com/scrape: "yes"}}
  serviceMonitor: {enabled: true, labels: {release: prometheus}, interval: 30s}
  podMonitor: {enabled: true, labels: {release: prometheus}, interval: 1m}
  prometheusRule: {enabled: true, labels: {release: prometheus}, runbook: "https://docs.example.com/observe"}
  dashboard: {enabled: true, annotations: {grafana_folder: Nix}}
networkPolicy:
  enabled: true
  metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 22}]}]
podDisruptionBudget: {enabled: true, maxUnavailable: 50%}
podAnnotations: {example.com/note: x}
podLabels: {example.com/tier: ops}
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{key: dedicated, operator: Equal, value: ci, effect: NoSchedule}]
affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: topology.kubernetes.io/zone}}]}}
topologySpreadConstraints: [{maxSkew: 2, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}]
priorityClassName: system-cluster-critical
`
	someNamespaces = `
watchNamespaces: [ci, nightly]
podDisruptionBudget: {enabled: true}
networkPolicy: {enabled: true}
metrics: {podMonitor: {enabled: true}}
`
	bare = `
crds: {enabled: false}
rbac: {create: false, aggregateToUserRoles: false}
serviceAccount: {create: false, name: theirs}
metrics: {access: Nobody}
resources: null
`
)

var valueSets = map[string]string{"defaults": defaults, "everything": everything, "some namespaces": someNamespaces, "bare": bare}

func TestLint(t *testing.T) {
	t.Parallel()
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, err := tools.Run(t, "helm", "lint", "--strict", tools.Chart(), "--values", valuesFile(t, values))
			if err != nil || strings.Contains(stdout, "[WARNING]") {
				t.Errorf("helm lint: %v\n%s%s", err, stdout, stderr)
			}
		})
	}
}

// Whatever the values, the objects fit together.
func TestObjectsFitTogether(t *testing.T) {
	t.Parallel()
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := template(t, values)
			if ids := all.ids(); len(slices.Compact(slices.Clone(ids))) != len(ids) {
				t.Errorf("an object is rendered twice:\n%s", strings.Join(ids, "\n"))
			}
			deployment := get[*appsv1.Deployment](t, all, Release)
			pod := deployment.Spec.Template
			selects(t, "Deployment", deployment.Spec.Selector.MatchLabels, pod.Labels)
			for _, service := range list[*corev1.Service](all) {
				selects(t, "Service", service.Spec.Selector, pod.Labels)
				if port := service.Spec.Ports[0]; !hasPort(pod.Spec.Containers[0], port.TargetPort.StrVal, port.Port) {
					t.Errorf("the container has no port %s with number %d", port.TargetPort.StrVal, port.Port)
				}
			}
			for _, policy := range list[*networkingv1.NetworkPolicy](all) {
				selects(t, "NetworkPolicy", policy.Spec.PodSelector.MatchLabels, pod.Labels)
			}
			for _, budget := range list[*policyv1.PodDisruptionBudget](all) {
				selects(t, "PodDisruptionBudget", budget.Spec.Selector.MatchLabels, pod.Labels)
			}
			for _, o := range all {
				if o.GetLabels()["app.kubernetes.io/managed-by"] != "Helm" {
					t.Errorf("%s has no label managed-by", id(o))
				}
			}
			wantWholeBindings(t, all, pod.Spec.ServiceAccountName)
			wantRestricted(t, pod.Spec)
		})
	}
}

func selects(t *testing.T, what string, selector, podLabels map[string]string) {
	t.Helper()
	if len(selector) == 0 || !labels.SelectorFromSet(selector).Matches(labels.Set(podLabels)) {
		t.Errorf("the %s selects %v, which the pods' labels %v do not match", what, selector, podLabels)
	}
}

func hasPort(c corev1.Container, name string, number int32) bool {
	return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == name && p.ContainerPort == number })
}

// wantWholeBindings checks that each binding's role is rendered too and that
// its subject is the account of the pods.
func wantWholeBindings(t *testing.T, all objects, account string) {
	t.Helper()
	ids := all.ids()
	check := func(binding, bindingNamespace string, ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
		if want := ref.Kind + "/" + bindingNamespace + "/" + ref.Name; !slices.Contains(ids, want) {
			t.Errorf("%s refers to %s, which is not rendered", binding, want)
		}
		want := []rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: Namespace}}
		if diff := cmp.Diff(want, subjects); diff != "" {
			t.Errorf("subjects of %s (-want +got):\n%s", binding, diff)
		}
	}
	for _, b := range list[*rbacv1.RoleBinding](all) {
		check(id(b), b.Namespace, b.RoleRef, b.Subjects)
	}
	for _, b := range list[*rbacv1.ClusterRoleBinding](all) {
		check(id(b), "", b.RoleRef, b.Subjects)
	}
}

func TestWhatIsInstalled(t *testing.T) {
	t.Parallel()
	const crd = "CustomResourceDefinition//nixbuilders.nixbuilder.io"
	tests := map[string]struct {
		values string
		want   []string
	}{
		"defaults": {values: defaults, want: []string{
			"ClusterRole//nix-builder-operator-edit",
			"ClusterRole//nix-builder-operator-manager",
			"ClusterRole//nix-builder-operator-metrics-auth",
			"ClusterRole//nix-builder-operator-metrics-reader",
			"ClusterRole//nix-builder-operator-view",
			"ClusterRoleBinding//nix-builder-operator-manager",
			"ClusterRoleBinding//nix-builder-operator-metrics-auth",
			crd,
			"Deployment/nix-builder-operator/nix-builder-operator",
			"Lease/nix-builder-operator/nix-builder-operator",
			"Role/nix-builder-operator/nix-builder-operator-leader-election",
			"RoleBinding/nix-builder-operator/nix-builder-operator-leader-election",
			"Service/nix-builder-operator/nix-builder-operator-metrics",
			"ServiceAccount/nix-builder-operator/nix-builder-operator",
		}},
		"some namespaces": {values: someNamespaces, want: []string{
			"ClusterRole//nix-builder-operator-edit", // for users, bound to nobody
			"ClusterRole//nix-builder-operator-view",
			crd,
			"Deployment/nix-builder-operator/nix-builder-operator",
			"Lease/nix-builder-operator/nix-builder-operator",
			"NetworkPolicy/nix-builder-operator/nix-builder-operator",
			"PodDisruptionBudget/nix-builder-operator/nix-builder-operator",
			"PodMonitor/nix-builder-operator/nix-builder-operator-dispatchers",
			"Role/ci/nix-builder-operator-manager",
			"Role/nightly/nix-builder-operator-manager",
			"Role/nix-builder-operator/nix-builder-operator-leader-election",
			"RoleBinding/ci/nix-builder-operator-manager",
			"RoleBinding/nightly/nix-builder-operator-manager",
			"RoleBinding/nix-builder-operator/nix-builder-operator-leader-election",
			"ServiceAccount/nix-builder-operator/nix-builder-operator",
		}},
		"bare": {values: bare, want: []string{
			"Deployment/nix-builder-operator/nix-builder-operator",
			"Lease/nix-builder-operator/nix-builder-operator",
		}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, template(t, tc.values).ids()); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeployment(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		values    string
		wantImage string
		wantArgs  []string
	}{
		"defaults": {values: defaults, wantImage: "nix-builder-operator:0.1.0", wantArgs: []string{
			"--leader-elect", "--health-probe-bind-address=:8081", "--metrics-bind-address=:8443",
			"--log-level=info", "--log-format=json",
		}},
		"everything": {
			values:    everything,
			wantImage: "registry.example.com/nbo@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			wantArgs: []string{
				"--leader-elect", "--health-probe-bind-address=:8081", "--metrics-bind-address=:9443",
				"--metrics-cert-dir=/etc/metrics-certificate", "--log-level=debug", "--log-format=console", "--kept-connections=false", "--probe-concurrency=64",
			},
		},
		"some namespaces": {values: someNamespaces, wantImage: "nix-builder-operator:0.1.0", wantArgs: []string{
			"--leader-elect", "--health-probe-bind-address=:8081", "--metrics-bind-address=0",
			"--watch-namespaces=ci,nightly", "--log-level=info", "--log-format=json",
		}},
		"metrics for anyone": {values: "{metrics: {access: Anyone}, image: {tag: v1}}", wantImage: "nix-builder-operator:v1", wantArgs: []string{
			"--leader-elect", "--health-probe-bind-address=:8081", "--metrics-bind-address=:8443", "--metrics-authorization=false",
			"--log-level=info", "--log-format=json",
		}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			container := get[*appsv1.Deployment](t, template(t, tc.values), Release).Spec.Template.Spec.Containers[0]
			if container.Image != tc.wantImage {
				t.Errorf("image = %s, want %s", container.Image, tc.wantImage)
			}
			if diff := cmp.Diff(tc.wantArgs, container.Args); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
		})
	}
}

// Every value ends up where it belongs.
func TestEverything(t *testing.T) {
	t.Parallel()
	all := template(t, everything)
	deployment := get[*appsv1.Deployment](t, all, Release)
	pod := deployment.Spec.Template
	got := map[string]any{
		"replicas":        *deployment.Spec.Replicas,
		"label":           deployment.Labels["team"],
		"pod label":       pod.Labels["example.com/tier"],
		"pod annotation":  pod.Annotations["example.com/note"],
		"pull secret":     pod.Spec.ImagePullSecrets[0].Name,
		"node selector":   pod.Spec.NodeSelector["kubernetes.io/os"],
		"toleration":      pod.Spec.Tolerations[0].Value,
		"affinity":        pod.Spec.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution[0].PodAffinityTerm.TopologyKey,
		"spread":          pod.Spec.TopologySpreadConstraints[0].TopologyKey,
		"priority":        pod.Spec.PriorityClassName,
		"certificate":     pod.Spec.Volumes[0].Secret.SecretName,
		"mounted at":      pod.Spec.Containers[0].VolumeMounts[0].MountPath,
		"account":         get[*corev1.ServiceAccount](t, all, Release).Annotations["example.com/role"],
		"service":         get[*corev1.Service](t, all, Release+"-metrics").Annotations["example.com/scrape"],
		"max unavailable": get[*policyv1.PodDisruptionBudget](t, all, Release).Spec.MaxUnavailable.StrVal,
	}
	want := map[string]any{
		"replicas": int32(3), "label": "ci", "pod label": "ops", "pod annotation": "x", "pull secret": "pull",
		"node selector": "linux", "toleration": "ci", "affinity": "topology.kubernetes.io/zone",
		"spread": "topology.kubernetes.io/zone", "priority": "system-cluster-critical", "certificate": "metrics-tls",
		"mounted at": "/etc/metrics-certificate", "account": "nix", "service": "yes", "max unavailable": "50%",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}

	policy := get[*networkingv1.NetworkPolicy](t, all, Release).Spec
	if len(policy.PolicyTypes) != 2 || len(policy.Ingress[0].From) != 1 {
		t.Errorf("network policy = %+v, want both directions and one peer", policy)
	}
	var ports []string
	for _, rule := range policy.Egress {
		for _, port := range rule.Ports {
			ports = append(ports, port.Port.String())
		}
	}
	if diff := cmp.Diff([]string{"53", "53", "443", "6443", "22"}, ports); diff != "" {
		t.Errorf("ports of egress (-want +got):\n%s", diff)
	}
}

func TestMonitors(t *testing.T) {
	t.Parallel()
	monitor := func(all objects, kind string) map[string]any {
		for _, o := range list[*unstructured.Unstructured](all) {
			if o.GetKind() == kind {
				spec, _, _ := unstructured.NestedMap(o.Object, "spec")
				return spec
			}
		}
		return nil
	}
	all := template(t, everything)
	pods := get[*appsv1.Deployment](t, all, Release).Spec.Selector.MatchLabels
	wantService := map[string]any{
		"selector": map[string]any{"matchLabels": map[string]any{
			"app.kubernetes.io/name": pods["app.kubernetes.io/name"], "app.kubernetes.io/instance": pods["app.kubernetes.io/instance"],
		}},
		"endpoints": []any{map[string]any{
			"port": "metrics", "path": "/metrics", "scheme": "https", "interval": "30s", "honorLabels": true,
			"bearerTokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token",
			"tlsConfig":       map[string]any{"insecureSkipVerify": true},
		}},
	}
	if diff := cmp.Diff(wantService, monitor(all, "ServiceMonitor")); diff != "" {
		t.Errorf("ServiceMonitor (-want +got):\n%s", diff)
	}
	wantPods := map[string]any{
		"namespaceSelector":   map[string]any{"any": true},
		"selector":            map[string]any{"matchLabels": map[string]any{dispatcherLabel: "true"}},
		"podMetricsEndpoints": []any{map[string]any{"port": dispatcherPort, "path": "/metrics", "interval": "1m"}},
	}
	if diff := cmp.Diff(wantPods, monitor(all, "PodMonitor")); diff != "" {
		t.Errorf("PodMonitor (-want +got):\n%s", diff)
	}
	got, _, _ := unstructured.NestedStringSlice(monitor(template(t, someNamespaces), "PodMonitor"), "namespaceSelector", "matchNames")
	if diff := cmp.Diff([]string{"ci", "nightly"}, got); diff != "" {
		t.Errorf("namespaces of the PodMonitor (-want +got):\n%s", diff)
	}
}

func TestCRD(t *testing.T) {
	t.Parallel()
	const name, policy = "nixbuilders.nixbuilder.io", "helm.sh/resource-policy"
	kept := get[*apiextensionsv1.CustomResourceDefinition](t, template(t, defaults), name)
	if kept.Annotations[policy] != "keep" {
		t.Errorf("annotations %v: want the CRD kept on uninstall", kept.Annotations)
	}
	dropped := get[*apiextensionsv1.CustomResourceDefinition](t, template(t, "crds: {keep: false}"), name)
	if _, found := dropped.Annotations[policy]; found {
		t.Error("the CRD is kept on uninstall although crds.keep is false")
	}
	want := get[*apiextensionsv1.CustomResourceDefinition](t, kustomize(t, "crd"), name)
	if !equality.Semantic.DeepEqual(want.Spec, kept.Spec) {
		t.Error("the CRD of the chart differs from config/crd/bases: run `make chart`")
	}
}

func TestLongNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("very-long-", 7) + "name"
	tests := map[string]struct {
		release, values string
	}{
		"full name": {release: Release, values: "fullnameOverride: " + long[:63]},
		"name":      {release: Release, values: "nameOverride: " + long[:63]},
		"release":   {release: long[:53], values: defaults},
		"all":       {release: long[:53], values: "{nameOverride: " + long[:63] + ", metrics: {podMonitor: {enabled: true}}}"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := templateAs(t, tc.release, tc.values)
			for _, o := range all {
				if _, ok := o.(*apiextensionsv1.CustomResourceDefinition); !ok {
					for _, problem := range validation.IsDNS1123Label(o.GetName()) {
						t.Errorf("%s: %s", id(o), problem)
					}
				}
				for key, value := range o.GetLabels() {
					for _, problem := range validation.IsValidLabelValue(value) {
						t.Errorf("%s, label %s: %s", id(o), key, problem)
					}
				}
			}
			if ids := all.ids(); len(slices.Compact(slices.Clone(ids))) != len(ids) {
				t.Errorf("truncation made names equal:\n%s", strings.Join(ids, "\n"))
			}
		})
	}
}
