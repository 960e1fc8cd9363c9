// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chart

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// config/ and the chart's defaults are the same install, object by object;
// only labels and annotations tell who manages them.
func TestKustomizeEqualsChart(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		dirs   []string
		values string
	}{
		"default": {dirs: []string{"default"}, values: defaults},
		"with monitors and network policy": {
			dirs:   []string{"default", "prometheus", "network-policy"},
			values: "{metrics: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}, networkPolicy: {enabled: true}}",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var configured objects
			for _, dir := range tc.dirs {
				configured = append(configured, kustomize(t, dir)...)
			}
			// Helm makes the namespace itself.
			configured = slices.DeleteFunc(configured, func(o client.Object) bool {
				return o.GetObjectKind().GroupVersionKind().Kind == "Namespace"
			})
			want, got := comparable(t, template(t, tc.values)), comparable(t, configured)
			if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))); diff != "" {
				t.Fatalf("objects (-chart +config):\n%s", diff)
			}
			for object := range want {
				if diff := cmp.Diff(want[object], got[object]); diff != "" {
					t.Errorf("%s (-chart +config):\n%s", object, diff)
				}
			}
		})
	}
}

// comparable returns the objects by id without what says who manages them.
func comparable(t *testing.T, all objects) map[string]map[string]any {
	t.Helper()
	byID := map[string]map[string]any{}
	for _, o := range all {
		m := fields(t, o)
		unstructured.RemoveNestedField(m, "metadata", "annotations")
		for _, path := range [][]string{{"metadata", "labels"}, {"spec", "template", "metadata", "labels"}} {
			labels, found, err := unstructured.NestedStringMap(m, path...)
			if err != nil || !found {
				continue
			}
			maps.DeleteFunc(labels, func(key, _ string) bool { return !strings.Contains(key, "aggregate-to-") })
			unstructured.RemoveNestedField(m, path...)
			if len(labels) > 0 {
				if err := unstructured.SetNestedStringMap(m, labels, path...); err != nil {
					t.Fatal(err)
				}
			}
		}
		byID[id(o)] = m
	}
	return byID
}

// The namespace of config/ asks for the standard that all pods meet.
func TestKustomizeNamespace(t *testing.T) {
	t.Parallel()
	for _, o := range kustomize(t, "default") {
		if o.GetObjectKind().GroupVersionKind().Kind == "Namespace" {
			if o.GetName() != Namespace || o.GetLabels()["pod-security.kubernetes.io/enforce"] != "restricted" {
				t.Errorf("namespace %s with labels %v, want %s, restricted", o.GetName(), o.GetLabels(), Namespace)
			}
			return
		}
	}
	t.Error("config/default has no namespace")
}
