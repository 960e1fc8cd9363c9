// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

// unfit is out of use for its disk or its load since a minute.
func unfit(reason string) v1alpha1.EndpointStatus {
	status := failing("", v1alpha1.ConditionMachineFit)
	status.Reason = reason
	return status
}

// Every build would fail on a full disk, but would only be late on a machine that is
// overloaded.
func TestUnfitMachines(t *testing.T) {
	t.Parallel()
	skewed := healthy("")
	skewed.FailedCondition, skewed.Reason = v1alpha1.ConditionMachineFit, "ClockSkewed"
	tests := map[string]struct {
		builders []*wrapper
		want     []string
	}{
		"a full disk, with another":  {[]*wrapper{one("x", unfit("DiskPressure")), one("y", healthy(""))}, []string{"y.example x86_64-linux"}},
		"a full disk, nobody else":   {[]*wrapper{one("x", unfit("DiskPressure"))}, nil},
		"overloaded, with another":   {[]*wrapper{one("x", unfit("Overloaded")), one("y", healthy(""))}, []string{"y.example x86_64-linux"}},
		"overloaded, nobody else":    {[]*wrapper{one("x", unfit("Overloaded"))}, []string{"x.example x86_64-linux"}},
		"one of each":                {[]*wrapper{one("x", unfit("DiskPressure")), one("y", unfit("Overloaded"))}, []string{"y.example x86_64-linux"}},
		"a clock that is off":        {[]*wrapper{one("x", skewed)}, []string{"x.example x86_64-linux"}},
		"a full disk, and long away": {[]*wrapper{one("x", unfit("DiskPressure")), one("y", down("", 100*time.Hour))}, []string{"y.example x86_64-linux"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := render(t, tc.builders...)
			if diff := cmp.Diff(tc.want, lines(t, content)); diff != "" {
				t.Errorf("machines (-want +got):\n%s", diff)
			}
			if tc.want == nil && !strings.Contains(content.Data[KeyMachines], "full disk") {
				t.Errorf("the file does not say why: %s", content.Data[KeyMachines])
			}
		})
	}
}

// A feature that a machine lacks is published nowhere; one that it must have for any
// build at all takes the machine out.
func TestRefutedFeaturesAreNotPublished(t *testing.T) {
	t.Parallel()
	refuted := healthy("a")
	refuted.Features, refuted.RefutedFeatures = []string{"kvm", "big-parallel"}, []string{"kvm"}
	away := down("a", time.Minute)
	away.RefutedFeatures = []string{"kvm"}
	x := func(status v1alpha1.EndpointStatus) *wrapper {
		return linux("x").Endpoint("a", "a.example").EndpointStatus(status)
	}
	tests := map[string]struct {
		builder  *wrapper
		lines    int
		features []string
		systems  []string
	}{
		"declared":                     {builder: x(refuted).Features("kvm", "benchmark"), lines: 1, features: []string{"benchmark"}, systems: []string{"x86_64-linux"}},
		"discovered":                   {builder: x(refuted), lines: 1, features: []string{"big-parallel"}, systems: []string{"x86_64-linux"}},
		"the only one":                 {builder: x(refuted).Features("kvm"), lines: 1, systems: []string{"x86_64-linux"}},
		"mandatory":                    {builder: x(refuted).MandatoryFeatures("kvm"), features: []string{"big-parallel"}},
		"mandatory, and healthy last":  {builder: x(away).MandatoryFeatures("kvm")},
		"mandatory, but not this one":  {builder: x(refuted).MandatoryFeatures("benchmark"), lines: 1, features: []string{"big-parallel"}, systems: []string{"x86_64-linux"}},
		"without looking at any other": {builder: x(refuted).Change(func(b *v1alpha1.NixBuilder) { b.Spec.Discovery = v1alpha1.DiscoveryDisabled }), lines: 1, systems: []string{"x86_64-linux"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := render(t, tc.builder)
			document, err := inventory.Decode([]byte(content.Data[KeyBuilders]))
			if err != nil {
				t.Fatal(err)
			}
			listed := document.Builders[0]
			if content.Lines != tc.lines || strings.Contains(lineOf(content), "kvm") {
				t.Errorf("machines, %d lines:\n%s", content.Lines, content.Data[KeyMachines])
			}
			if diff := cmp.Diff([][]string{tc.systems, tc.features}, [][]string{listed.Systems, listed.SupportedFeatures}); diff != "" {
				t.Errorf("systems and features for dispatchers (-want +got):\n%s", diff)
			}
		})
	}
}

// lineOf is the machines file without its comment.
func lineOf(content *Content) string {
	if content.Lines == 0 {
		return ""
	}
	return content.Data[KeyMachines]
}

// A cordon of one machine is its own, for dispatchers, too.
func TestCordonOfOneEndpointIsPublished(t *testing.T) {
	t.Parallel()
	content := render(t, linux("x").
		EndpointWith(v1alpha1.Endpoint{Name: "a", Host: "a.example", Cordon: builders.MakeCordon("disk", now.Add(time.Hour))}).
		Endpoint("b", "b.example").EndpointStatus(healthy("a")).EndpointStatus(healthy("b")))
	document, err := inventory.Decode([]byte(content.Data[KeyBuilders]))
	if err != nil {
		t.Fatal(err)
	}
	until := now.Add(time.Hour)
	want := []*inventory.Cordon{{Reason: "disk", Until: &until}, nil}
	if diff := cmp.Diff(want, []*inventory.Cordon{document.Builders[0].Cordon, document.Builders[1].Cordon}); diff != "" {
		t.Errorf("cordons for dispatchers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"b.example x86_64-linux"}, lines(t, content)); diff != "" {
		t.Errorf("machines (-want +got):\n%s", diff)
	}
	if !content.Expires.Equal(until) {
		t.Errorf("the content expires at %v, want %v", content.Expires, until)
	}
}
