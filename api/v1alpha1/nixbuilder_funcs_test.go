// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package v1alpha1

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestActiveCordon(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	until := func(t time.Time) *metav1.Time { return &metav1.Time{Time: t} }
	open := &Cordon{Reason: "open"}
	future := &Cordon{Reason: "future", Until: until(now.Add(time.Second))}
	over := &Cordon{Reason: "over", Until: until(now)}

	tests := map[string]struct {
		builder, endpoint *Cordon
		want              *Cordon
	}{
		"none":                         {},
		"the builder's":                {builder: open, want: open},
		"the endpoint's":               {endpoint: open, want: open},
		"the endpoint's goes first":    {builder: open, endpoint: future, want: future},
		"with an end in the future":    {builder: future, want: future},
		"over at its end":              {builder: over},
		"the endpoint's is over":       {builder: open, endpoint: over, want: open},
		"both are over":                {builder: over, endpoint: over},
		"the builder's is over, other": {builder: over, endpoint: future, want: future},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := NixBuilderSpec{Cordon: tc.builder}
			if got := spec.ActiveCordon(&Endpoint{Cordon: tc.endpoint}, now); got != tc.want {
				t.Errorf("ActiveCordon() = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		endpoint Endpoint
		want     string
	}{
		"name":              {endpoint: Endpoint{Host: "mac-1.example.com", Port: 22}, want: "mac-1.example.com:22"},
		"IPv4":              {endpoint: Endpoint{Host: "192.0.2.7", Port: 2222}, want: "192.0.2.7:2222"},
		"IPv6":              {endpoint: Endpoint{Host: "2001:db8::7", Port: 22}, want: "[2001:db8::7]:22"},
		"IPv6, spelled out": {endpoint: Endpoint{Host: "2001:db8:0:0:0:0:0:7", Port: 22}, want: "[2001:db8::7]:22"},
		"IPv4 in IPv6":      {endpoint: Endpoint{Host: "::ffff:c000:207", Port: 22}, want: "192.0.2.7:22"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tc.endpoint.Address(); got != tc.want {
				t.Errorf("Address() = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestInUse(t *testing.T) {
	t.Parallel()
	for state, want := range map[EndpointState]bool{
		EndpointUnknown: false, EndpointHealthy: true, EndpointSuspect: true, EndpointUnhealthy: false, "": false,
	} {
		status := EndpointStatus{State: state}
		if got := status.InUse(); got != want {
			t.Errorf("InUse() of %q = %t, want %t", state, got, want)
		}
	}
}

func TestStatusLookups(t *testing.T) {
	t.Parallel()
	status := NixBuilderStatus{
		Endpoints:  []EndpointStatus{{Name: "a"}, {Name: "b"}},
		Conditions: []metav1.Condition{{Type: ConditionReady}},
	}
	if got := status.Endpoint("b"); got != &status.Endpoints[1] {
		t.Errorf("Endpoint(b) = %v", got)
	}
	if got := status.Endpoint("c"); got != nil {
		t.Errorf("Endpoint(c) = %v", got)
	}
	if got := status.Condition(ConditionReady); got != &status.Conditions[0] {
		t.Errorf("Condition(Ready) = %v", got)
	}
	if got := status.Condition(ConditionTrusted); got != nil {
		t.Errorf("Condition(Trusted) = %v", got)
	}
}

func TestAddToScheme(t *testing.T) {
	t.Parallel()
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"NixBuilder", "NixBuilderList"} {
		if !scheme.Recognizes(GroupVersion.WithKind(kind)) {
			t.Errorf("the scheme does not know %s", kind)
		}
	}
}

func TestLacking(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		mandatory, refuted, want []string
	}{
		"nothing declared":     {refuted: []string{"kvm"}},
		"nothing refuted":      {mandatory: []string{"kvm"}},
		"another one refuted":  {mandatory: []string{"kvm"}, refuted: []string{"benchmark"}},
		"one of two is lacked": {mandatory: []string{"kvm", "gpu"}, refuted: []string{"benchmark", "gpu"}, want: []string{"gpu"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := NixBuilderSpec{MandatoryFeatures: tc.mandatory}
			if got := spec.Lacking(&EndpointStatus{RefutedFeatures: tc.refuted}); !slices.Equal(got, tc.want) {
				t.Errorf("Lacking() = %v, want %v", got, tc.want)
			}
			if len(spec.MandatoryFeatures) != len(tc.mandatory) {
				t.Error("the spec was changed")
			}
		})
	}
}
