// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// alert is a rule of Prometheus.
type alert struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// alerts are those of the chart's PrometheusRule.
func alerts(t *testing.T, all objects) []alert {
	t.Helper()
	for _, o := range list[*unstructured.Unstructured](all) {
		if o.GetKind() != "PrometheusRule" {
			continue
		}
		text, err := yaml.Marshal(o.Object["spec"])
		if err != nil {
			t.Fatal(err)
		}
		var spec struct {
			Groups []struct {
				Name  string  `json:"name"`
				Rules []alert `json:"rules"`
			} `json:"groups"`
		}
		if err := yaml.UnmarshalStrict(text, &spec); err != nil {
			t.Fatal(err)
		}
		var rules []alert
		for _, group := range spec.Groups {
			rules = append(rules, group.Rules...)
		}
		return rules
	}
	t.Fatal("there is no PrometheusRule")
	return nil
}

// used are the labels of $labels in a text for people.
var used = regexp.MustCompile(`\$labels\.(\w+)`)

// Every alert is about metrics that exist, says what to do, and has its section in
// the documentation, which has no others.
func TestAlerts(t *testing.T) {
	t.Parallel()
	exports := allMetrics(t)
	var names []string
	for _, a := range alerts(t, template(t, "metrics: {prometheusRule: {enabled: true}}")) {
		names = append(names, a.Alert)
		for _, problem := range exports.check(a.Expr) {
			t.Errorf("%s: %s", a.Alert, problem)
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, a.Labels["severity"]) {
			t.Errorf("%s: severity %q", a.Alert, a.Labels["severity"])
		}
		if want := "docs/observe.md#" + strings.ToLower(a.Alert); a.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook %q, want %q", a.Alert, a.Annotations["runbook_url"], want)
		}
		if len(a.Annotations["summary"]) < 20 || len(a.Annotations["description"]) < 80 {
			t.Errorf("%s says too little: %q", a.Alert, a.Annotations)
		}
		for _, label := range used.FindAllStringSubmatch(a.Annotations["summary"]+a.Annotations["description"], -1) {
			if !regexp.MustCompile(`by \([^)]*\b` + label[1] + `\b`).MatchString(a.Expr) {
				t.Errorf("%s names $labels.%s, which the expression drops", a.Alert, label[1])
			}
		}
	}
	var sections []string
	for _, section := range regexp.MustCompile(`(?m)^### (Nix\w+)$`).FindAllStringSubmatch(readFile(t, "docs/observe.md"), -1) {
		sections = append(sections, section[1])
	}
	if diff := cmp.Diff(names, sections); diff != "" {
		t.Errorf("sections of docs/observe.md (-alerts +sections):\n%s", diff)
	}
}

func TestRunbooksElsewhere(t *testing.T) {
	t.Parallel()
	const base = "https://docs.example.com/observe"
	for _, a := range alerts(t, template(t, everything)) {
		if want := base + "#" + strings.ToLower(a.Alert); a.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook %q, want %q", a.Alert, a.Annotations["runbook_url"], want)
		}
	}
}

// panel is a panel of a Grafana dashboard.
type panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct {
		Expr         string `json:"expr"`
		LegendFormat string `json:"legendFormat"`
		Datasource   struct {
			UID string `json:"uid"`
		} `json:"datasource"`
	} `json:"targets"`
}

// overlaps reports whether two panels cover each other.
func (p panel) overlaps(other panel) bool {
	a, b := p.GridPos, other.GridPos
	return a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H
}

func TestDashboard(t *testing.T) {
	t.Parallel()
	object := get[*corev1.ConfigMap](t, template(t, everything), Release+"-dashboard")
	if object.Labels["grafana_dashboard"] != "1" || object.Annotations["grafana_folder"] != "Nix" {
		t.Errorf("labels %v, annotations %v", object.Labels, object.Annotations)
	}
	text, ok := object.Data["nix-builders.json"]
	if !ok || len(object.Data) != 1 {
		t.Fatalf("keys of the ConfigMap: %d, want nix-builders.json alone", len(object.Data))
	}
	var dashboard struct {
		UID    string  `json:"uid"`
		Panels []panel `json:"panels"`
	}
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.UID == "" || len(dashboard.Panels) < 10 {
		t.Errorf("dashboard %q with %d panels", dashboard.UID, len(dashboard.Panels))
	}
	exports, ids := allMetrics(t), map[int]bool{}
	for i, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("panel %s: ID %d is used twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %s is too wide", p.Title)
		}
		for _, other := range dashboard.Panels[:i] {
			if p.overlaps(other) {
				t.Errorf("panels %s and %s overlap", p.Title, other.Title)
			}
		}
		if p.Type != "row" {
			checkPanel(t, exports, p)
		}
	}
}

func checkPanel(t *testing.T, exports exported, p panel) {
	t.Helper()
	if p.Title == "" || p.Description == "" || len(p.Targets) == 0 {
		t.Errorf("panel %q lacks a title, a description or a query", p.Title)
	}
	for _, target := range p.Targets {
		for _, problem := range exports.check(target.Expr) {
			t.Errorf("panel %s: %s", p.Title, problem)
		}
		if target.Datasource.UID != "${datasource}" {
			t.Errorf("panel %s: data source %q, want the one that is chosen", p.Title, target.Datasource.UID)
		}
		for _, label := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
			if strings.Contains(target.Expr, "by (") && !regexp.MustCompile(`by \([^)]*\b`+label[1]+`\b`).MatchString(target.Expr) {
				t.Errorf("panel %s: the legend names %s, which the query drops", p.Title, label[1])
			}
		}
	}
}
