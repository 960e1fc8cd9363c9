// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// wantRestricted checks what the restricted Pod Security Standard asks for,
// and a read-only root file system besides.
func wantRestricted(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	if pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Error("the pod shares a namespace of its node")
	}
	for _, volume := range pod.Volumes {
		if volume.HostPath != nil {
			t.Errorf("volume %s is a directory of the node", volume.Name)
		}
	}
	for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
		wantRestrictedContainer(t, pod, container)
	}
}

func wantRestrictedContainer(t *testing.T, pod corev1.PodSpec, c corev1.Container) {
	t.Helper()
	s, p := c.SecurityContext, pod.SecurityContext
	if s == nil {
		s = &corev1.SecurityContext{}
	}
	if p == nil {
		p = &corev1.PodSecurityContext{}
	}
	nonRoot, user, seccomp := s.RunAsNonRoot, s.RunAsUser, s.SeccompProfile
	if nonRoot == nil {
		nonRoot = p.RunAsNonRoot
	}
	if user == nil {
		user = p.RunAsUser
	}
	if seccomp == nil {
		seccomp = p.SeccompProfile
	}
	is := func(flag *bool, want bool) bool { return flag != nil && *flag == want }
	checks := map[string]bool{
		"runAsNonRoot":                          is(nonRoot, true),
		"a numeric user other than root":        user != nil && *user != 0,
		"seccompProfile RuntimeDefault":         seccomp != nil && seccomp.Type == corev1.SeccompProfileTypeRuntimeDefault,
		"no privileges":                         !is(s.Privileged, true),
		"allowPrivilegeEscalation false":        is(s.AllowPrivilegeEscalation, false),
		"readOnlyRootFilesystem":                is(s.ReadOnlyRootFilesystem, true),
		"capabilities drop ALL and add nothing": s.Capabilities != nil && slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) && len(s.Capabilities.Add) == 0,
	}
	for what, ok := range checks {
		if !ok {
			t.Errorf("container %s lacks: %s", c.Name, what)
		}
	}
}

// The chart's rules are those that the controllers ask for in their markers,
// for the cluster as for single namespaces.
func TestManagerRules(t *testing.T) {
	t.Parallel()
	want := get[*rbacv1.ClusterRole](t, decode(t, readFile(t, "config/rbac/role.yaml")), "manager").Rules
	if got := get[*rbacv1.ClusterRole](t, template(t, defaults), Release+"-manager").Rules; !cmp.Equal(want, got) {
		t.Errorf("ClusterRole of the chart differs from config/rbac/role.yaml, run `make chart` (-want +got):\n%s", cmp.Diff(want, got))
	}
	for _, role := range list[*rbacv1.Role](template(t, someNamespaces)) {
		if role.Name != Release+"-manager" {
			continue
		}
		if diff := cmp.Diff(want, role.Rules); diff != "" {
			t.Errorf("%s (-want +got):\n%s", id(role), diff)
		}
	}
}

// What no role of the operator may allow, whatever the markers say.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := template(t, values)
			for _, role := range list[*rbacv1.ClusterRole](all) {
				wantLeast(t, id(role), role.Rules)
			}
			for _, role := range list[*rbacv1.Role](all) {
				wantLeast(t, id(role), role.Rules)
			}
		})
	}
}

func wantLeast(t *testing.T, role string, rules []rbacv1.PolicyRule) {
	t.Helper()
	for _, rule := range rules {
		for _, s := range slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs) {
			if s == "*" {
				t.Errorf("%s has a wildcard: %+v", role, rule)
			}
		}
		if slices.Contains(rule.Resources, "secrets") && !slices.Equal(rule.Verbs, []string{"get"}) {
			t.Errorf("%s allows %v on Secrets, want get only", role, rule.Verbs)
		}
		for _, verb := range []string{"impersonate", "escalate", "bind"} {
			if slices.Contains(rule.Verbs, verb) {
				t.Errorf("%s allows %s", role, verb)
			}
		}
		for _, resource := range []string{"pods/exec", "serviceaccounts/token"} {
			if slices.Contains(rule.Resources, resource) {
				t.Errorf("%s covers %s", role, resource)
			}
		}
	}
}

// With watchNamespaces nothing of the operator covers the cluster, unless
// somebody asks for metrics with a token check; that adds reviews only.
func TestWatchNamespacesGivesRolesOnly(t *testing.T) {
	t.Parallel()
	if bindings := list[*rbacv1.ClusterRoleBinding](template(t, someNamespaces)); len(bindings) != 0 {
		t.Errorf("%s binds a ClusterRole", id(bindings[0]))
	}
	all := template(t, someNamespaces, "--set", "metrics.access=Token")
	bindings := list[*rbacv1.ClusterRoleBinding](all)
	if len(bindings) != 1 {
		t.Fatalf("%d ClusterRoleBindings, want one for token checks", len(bindings))
	}
	for _, rule := range get[*rbacv1.ClusterRole](t, all, bindings[0].RoleRef.Name).Rules {
		if !slices.Equal(rule.Verbs, []string{"create"}) || !slices.Contains([]string{"tokenreviews", "subjectaccessreviews"}, rule.Resources[0]) {
			t.Errorf("the ClusterRole for token checks has the rule %+v", rule)
		}
	}
}

// Users are given NixBuilders through the cluster's own roles, and never their
// status, which holds pinned host keys.
func TestUserRoles(t *testing.T) {
	t.Parallel()
	all := template(t, defaults)
	const aggregate = "rbac.authorization.k8s.io/aggregate-to-"
	tests := map[string]struct {
		to       []string
		resource []string
		verbs    []string
	}{
		"view": {to: []string{"view", "edit", "admin"}, resource: []string{"nixbuilders", "nixbuilders/status"}, verbs: []string{"get", "list", "watch"}},
		"edit": {to: []string{"edit", "admin"}, resource: []string{"nixbuilders"}, verbs: []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			role := get[*rbacv1.ClusterRole](t, all, Release+"-"+name)
			for _, to := range []string{"view", "edit", "admin"} {
				if got, want := role.Labels[aggregate+to] == "true", slices.Contains(tc.to, to); got != want {
					t.Errorf("aggregated to %s: %v, want %v", to, got, want)
				}
			}
			want := []rbacv1.PolicyRule{{APIGroups: []string{"nixbuilder.io"}, Resources: tc.resource, Verbs: tc.verbs}}
			if diff := cmp.Diff(want, role.Rules); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}
