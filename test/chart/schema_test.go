// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"strings"
	"testing"
)

// A wrong value is refused with its path and what is allowed.
func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		values string
		want   []string
	}{
		"misspelt value":           {values: "replica: 2", want: []string{"at ''", "additional properties 'replica' not allowed"}},
		"misspelt nested value":    {values: "metrics: {enabled: true}", want: []string{"at '/metrics'", "'enabled' not allowed"}},
		"text for a number":        {values: `replicas: "2"`, want: []string{"at '/replicas'", "got string, want integer"}},
		"negative number":          {values: "replicas: -1", want: []string{"at '/replicas'", "minimum: got -1, want 0"}},
		"word for a switch":        {values: "crds: {keep: sometimes}", want: []string{"at '/crds/keep'", "got string, want boolean"}},
		"word for another switch":  {values: "keptConnections: Disabled", want: []string{"at '/keptConnections'", "got string, want boolean"}},
		"unknown choice":           {values: "metrics: {access: Everyone}", want: []string{"at '/metrics/access'", "must be one of 'Auto', 'Token', 'Anyone', 'Nobody'"}},
		"unknown log level":        {values: "log: {level: trace}", want: []string{"at '/log/level'", "'error', 'info', 'debug'"}},
		"one namespace as text":    {values: "watchNamespaces: ci", want: []string{"at '/watchNamespaces'", "got string, want array"}},
		"not a namespace":          {values: "watchNamespaces: [CI]", want: []string{"at '/watchNamespaces/0'", "'CI' does not match pattern"}},
		"a namespace twice":        {values: "watchNamespaces: [ci, ci]", want: []string{"at '/watchNamespaces'", "items at 0 and 1 are equal"}},
		"short digest":             {values: "image: {digest: sha256:12}", want: []string{"at '/image/digest'", "does not match pattern"}},
		"pull secret as text":      {values: "imagePullSecrets: [pull]", want: []string{"at '/imagePullSecrets/0'", "got string, want object"}},
		"argument that is no flag": {values: "extraArgs: [leader-elect]", want: []string{"at '/extraArgs/0'", "does not match pattern '^--"}},
		"number as annotation":     {values: "podAnnotations: {port: 8080}", want: []string{"at '/podAnnotations/port'", "got number, want string"}},
		"privileged port":          {values: "metrics: {port: 443}", want: []string{"at '/metrics/port'", "minimum: got 443, want 1,024"}},
		"interval without unit":    {values: `metrics: {serviceMonitor: {interval: "30"}}`, want: []string{"at '/metrics/serviceMonitor/interval'", "does not match"}},
		"runbook with a section":   {values: `metrics: {prometheusRule: {runbook: "https://x#y"}}`, want: []string{"at '/metrics/prometheusRule/runbook'", "does not match"}},
		"dashboard with a number":  {values: "metrics: {dashboard: {labels: {grafana_dashboard: 1}}}", want: []string{"at '/metrics/dashboard/labels/grafana_dashboard'", "got number, want string"}},
		"empty egress rule":        {values: "networkPolicy: {egress: [{}]}", want: []string{"at '/networkPolicy/egress/0'", "minProperties"}},
		"misspelt toleration":      {values: "tolerations: [{effects: NoSchedule}]", want: []string{"at '/tolerations/0'", "'effects' not allowed"}},
		"misspelt resources":       {values: "resources: {limit: {memory: 1Gi}}", want: []string{"at '/resources'", "'limit' not allowed"}},

		"scraping metrics that are off": {
			values: "{watchNamespaces: [ci], metrics: {serviceMonitor: {enabled: true}}}",
			want:   []string{"metrics.serviceMonitor.enabled needs metrics", "set metrics.access to Token"},
		},
		"label of the chart": {
			values: "podLabels: {app.kubernetes.io/name: mine}",
			want:   []string{"podLabels may not set app.kubernetes.io/name"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, stderr, err := tools.Run(t, "helm", "template", Release, tools.Chart(), "--values", valuesFile(t, tc.values))
			if err == nil {
				t.Fatal("helm template accepted it")
			}
			for _, want := range tc.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("message lacks %q:\n%s", want, stderr)
				}
			}
		})
	}
}

func TestOldKubernetes(t *testing.T) {
	t.Parallel()
	_, stderr, err := tools.Run(t, "helm", "template", Release, tools.Chart(), "--kube-version", "1.28.9")
	if err == nil || !strings.Contains(stderr, ">=1.29.0-0") {
		t.Errorf("helm template for 1.28: %v, %s, want it to name what is required", err, stderr)
	}
	if _, stderr, err := tools.Run(t, "helm", "template", Release, tools.Chart(), "--kube-version", "v1.29.0-vendor.1"); err != nil {
		t.Errorf("helm template for a vendor's 1.29: %v, %s", err, stderr)
	}
}
