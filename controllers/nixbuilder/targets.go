// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"context"
	"slices"
	"time"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// Prober probes endpoints, each on a schedule of its own, and keeps what it
// finds. [probe.Prober] is one. No method blocks on the network.
type Prober interface {
	// Set makes targets the endpoints of a builder. Equal targets change nothing.
	Set(builder probe.Key, targets []probe.Target)
	// Forget ends all probing of a builder and drops what is known of it.
	Forget(builder probe.Key)
	// Request probes all endpoints of a builder at once. The same token again does
	// so for none but new ones. Snapshots name the token with the result.
	Request(builder probe.Key, token string)
	// Snapshot returns what is known of each endpoint.
	Snapshot(builder probe.Key) map[string]probe.Snapshot
}

// probeTargets tells the prober what to probe and takes over what it knows.
func (r *Reconciler) probeTargets(_ context.Context, s *scope) error {
	if !s.probed() {
		r.prober.Forget(s.key)
		return nil
	}
	known := r.prober.Snapshot(s.key)
	s.pins = map[string]string{}
	targets := make([]probe.Target, 0, len(s.builder.Spec.Endpoints))
	for i := range s.builder.Spec.Endpoints {
		endpoint := &s.builder.Spec.Endpoints[i]
		if usesPin(&s.builder.Spec, endpoint) {
			s.pins[endpoint.Name] = pinFor(s.builder, endpoint.Name, known[endpoint.Name].Result.Facts)
		}
		targets = append(targets, s.target(endpoint))
	}
	r.prober.Set(s.key, targets)
	s.snapshots = r.prober.Snapshot(s.key)
	for name := range s.pins {
		// The key may have been seen first only now.
		s.pins[name] = pinFor(s.builder, name, s.snapshots[name].Result.Facts)
	}
	return nil
}

// target describes an endpoint to the prober.
func (s *scope) target(endpoint *v1alpha1.Endpoint) probe.Target {
	spec := &s.builder.Spec
	return probe.Target{
		Endpoint:               endpoint.Name,
		Host:                   endpoint.Host,
		Port:                   int(endpoint.Port),
		User:                   spec.User,
		RemoteProgram:          spec.RemoteProgram,
		HostKeys:               endpoint.HostKeys,
		CertificateAuthorities: spec.HostCertificateAuthorities,
		Jump:                   s.jump(),
		TrustOnFirstUse:        usesPin(spec, endpoint),
		PinnedHostKey:          s.pins[endpoint.Name],
		Credentials:            s.credentials,
		Systems:                spec.Systems,
		Features:               union(spec.SupportedFeatures, spec.MandatoryFeatures),
		Discovery:              spec.Discovery != v1alpha1.DiscoveryDisabled,
		Canary:                 spec.Probe.Canary == v1alpha1.CanaryEnabled,
		Thresholds:             thresholds(&spec.Thresholds),
		KeepConnection:         spec.Probe.KeptConnection != v1alpha1.KeptConnectionDisabled,
		Interval:               time.Duration(spec.Probe.IntervalSeconds) * time.Second,
		Timeout:                time.Duration(spec.Probe.TimeoutSeconds) * time.Second,
		FailureThreshold:       int(spec.Probe.FailureThreshold),
		Restored:               s.restored(endpoint),
	}
}

// union joins two sets, sorted.
func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// defaultMinFreeSpace and defaultMaxClockSkew are those of the API, for objects that
// did not pass through the API server.
const (
	defaultMinFreeSpace = 1 << 30
	defaultMaxClockSkew = 300 * time.Second
)

// thresholds turns those of the spec into the prober's.
func thresholds(spec *v1alpha1.Thresholds) probe.Thresholds {
	minFree := int64(defaultMinFreeSpace)
	if spec.MinFreeSpace != nil {
		minFree = max(spec.MinFreeSpace.Value(), 0)
	}
	return probe.Thresholds{
		MinFreeBytes:      minFree,
		MaxLoadPercent:    int(spec.MaxLoadPercent),
		MaxCPUPressure:    int(spec.MaxCPUPressurePercent),
		MaxMemoryPressure: int(spec.MaxMemoryPressurePercent),
		MaxIOPressure:     int(spec.MaxIOPressurePercent),
		MaxClockSkew:      orElse(time.Duration(spec.MaxClockSkewSeconds)*time.Second, defaultMaxClockSkew),
	}
}
