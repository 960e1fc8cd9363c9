// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/controllers/nixbuilder"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/metrics"
)

// exported are the metrics of our programs with their labels.
type exported map[string][]string

// ofLibraries are those that the libraries of our programs export, as far as alerts
// and dashboard use them.
var ofLibraries = exported{"leader_election_master_status": {"name"}, "process_resident_memory_bytes": nil}

// ofTargets are the labels that Prometheus adds.
var ofTargets = []string{"namespace", "pod"}

// descriptor is how client_golang prints a metric.
var descriptor = regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)

// Register implements prometheus.Registerer: it takes the names.
func (e exported) Register(c prometheus.Collector) error {
	descriptions := make(chan *prometheus.Desc)
	go func() {
		c.Describe(descriptions)
		close(descriptions)
	}()
	var err error
	for d := range descriptions {
		parts := descriptor.FindStringSubmatch(d.String())
		if parts == nil {
			err = fmt.Errorf("cannot read %s", d)
			continue
		}
		e[parts[1]] = strings.FieldsFunc(parts[2], func(r rune) bool { return r == ',' })
	}
	return err
}

// MustRegister implements prometheus.Registerer.
func (e exported) MustRegister(...prometheus.Collector) { panic("not used") }

// Unregister implements prometheus.Registerer.
func (e exported) Unregister(prometheus.Collector) bool { panic("not used") }

// allMetrics asks our programs for their metrics.
func allMetrics(t *testing.T) exported {
	t.Helper()
	all := maps.Clone(ofLibraries)
	if _, err := metrics.New(all, metrics.Sources{}); err != nil {
		t.Fatal(err)
	}
	if _, err := nixbuilder.NewMetrics(all); err != nil {
		t.Fatal(err)
	}
	if _, err := machines.NewMetrics(all); err != nil {
		t.Fatal(err)
	}
	return all
}

// labels returns the labels of a metric, or of a histogram's part.
func (e exported) labels(name string) ([]string, bool) {
	if labels, ok := e[name]; ok {
		return labels, true
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, found := strings.CutSuffix(name, suffix); found {
			if labels, ok := e[base]; ok {
				return append(slices.Clone(labels), "le"), true
			}
		}
	}
	return nil, false
}

// Parts of an expression.
var (
	quoted   = regexp.MustCompile(`"[^"]*"`)
	number   = regexp.MustCompile(`\b\d[\w.]*`)
	selector = regexp.MustCompile(`(\w+)\{([^}]*)\}`)
	matched  = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping = regexp.MustCompile(`\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	lookback = regexp.MustCompile(`\[[^\]]*\]`)
	word     = regexp.MustCompile(`[A-Za-z_]\w*`)
)

// language are the words of PromQL that our expressions use.
var language = []string{
	"sum", "max", "min", "count", "rate", "increase", "absent", "histogram_quantile", "vector", "and", "or", "unless",
}

// check reports what an expression uses and nobody exports. It is no parser: it knows
// that what is no word of the language must be a metric.
func (e exported) check(expression string) []string {
	var problems []string
	bare := number.ReplaceAllString(quoted.ReplaceAllString(expression, ""), "")
	if strings.Count(bare, "(") != strings.Count(bare, ")") {
		problems = append(problems, "parentheses do not match")
	}
	var groups []string
	for _, g := range grouping.FindAllStringSubmatch(bare, -1) {
		groups = append(groups, word.FindAllString(g[1], -1)...)
	}
	available := slices.Clone(ofTargets)
	for _, s := range selector.FindAllStringSubmatch(bare, -1) {
		known, _ := e.labels(s[1])
		for _, label := range matched.FindAllStringSubmatch(s[2], -1) {
			if !slices.Contains(known, label[1]) && !slices.Contains(ofTargets, label[1]) {
				problems = append(problems, fmt.Sprintf("%s has no label %s", s[1], label[1]))
			}
		}
	}
	rest := grouping.ReplaceAllString(lookback.ReplaceAllString(selector.ReplaceAllString(bare, "$1"), ""), "")
	used := 0
	for _, name := range word.FindAllString(rest, -1) {
		if slices.Contains(language, name) {
			continue
		}
		labels, ok := e.labels(name)
		if !ok {
			problems = append(problems, fmt.Sprintf("%s is no metric of ours", name))
		}
		available = append(available, labels...)
		used++
	}
	if used == 0 {
		problems = append(problems, "no metric is used")
	}
	for _, label := range groups {
		if !slices.Contains(available, label) {
			problems = append(problems, fmt.Sprintf("no metric has the label %s", label))
		}
	}
	return problems
}

func TestExpressionsAreChecked(t *testing.T) {
	t.Parallel()
	all := exported{"x_total": {"a"}, "x_seconds": {"b"}}
	tests := map[string]struct {
		expression string
		want       string
	}{
		"good":            {expression: `sum by (a, pod) (rate(x_total{a="y(",namespace=~"$n"}[5m])) > 0.5e3`},
		"histogram":       {expression: `histogram_quantile(0.9, sum by (le, b) (rate(x_seconds_bucket[5m])))`},
		"unknown metric":  {expression: `sum(y_total)`, want: "y_total is no metric of ours"},
		"unknown label":   {expression: `x_total{b="y"}`, want: "x_total has no label b"},
		"unknown group":   {expression: `sum by (b) (x_total)`, want: "no metric has the label b"},
		"no histogram":    {expression: `sum by (a) (x_totals_bucket)`, want: "x_totals_bucket is no metric of ours"},
		"open":            {expression: `sum(x_total`, want: "parentheses"},
		"nothing":         {expression: `vector(0)`, want: "no metric is used"},
		"unknown word":    {expression: `topk(3, x_total)`, want: "topk is no metric of ours"},
		"metric in label": {expression: `x_total{a="y_total"}`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := strings.Join(all.check(tc.expression), "; ")
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("problems %q, want %q", got, tc.want)
			}
		})
	}
}
