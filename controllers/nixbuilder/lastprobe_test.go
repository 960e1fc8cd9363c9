// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"testing"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// Which of several requests is answered when.
func TestLastProbeOfSeveralRequests(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		annotation, answered string
		a, b                 string // the requests that the endpoints were probed for last
		want                 string
	}{
		"nobody asks":                          {"", "", "", "", ""},
		"under way":                            {"2", "1", "1", "1", "1"},
		"under way, the first one":             {"1", "", "", "", ""},
		"one endpoint is late":                 {"2", "1", "2", "1", "1"},
		"ended":                                {"2", "1", "2", "2", "2"},
		"answered":                             {"2", "2", "2", "2", "2"},
		"somebody else asks before the answer": {"3", "1", "2", "2", "2"},
		"and one endpoint is probed for that":  {"3", "1", "3", "2", "1"},
		"after a restart":                      {"2", "1", "", "", "1"},
		"nobody asks any more":                 {"", "1", "2", "2", "1"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := one().Endpoint("b", "b.example.com").Obj()
			builder.Annotations = map[string]string{v1alpha1.ProbeRequestAnnotation: tc.annotation}
			if tc.answered != "" {
				builder.Status.LastProbe = &v1alpha1.LastProbe{Request: tc.answered}
			}
			a, b := healthySnapshot(), healthySnapshot()
			a.Requested, b.Requested = tc.a, tc.b
			got := newScope(builder, map[string]probe.Snapshot{"a": a, "b": b}).lastProbe()
			switch {
			case tc.want == "" && got != nil:
				t.Errorf("got %+v", got)
			case tc.want != "" && (got == nil || got.Request != tc.want):
				t.Errorf("got %+v, want %s", got, tc.want)
			case tc.want == tc.answered && got != builder.Status.LastProbe:
				t.Error("what has been answered is told anew")
			case tc.want != tc.answered && len(got.Endpoints) != 2:
				t.Errorf("got %d endpoints", len(got.Endpoints))
			}
		})
	}
}
