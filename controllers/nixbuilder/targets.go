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
		TrustOnFirstUse:        usesPin(spec, endpoint),
		PinnedHostKey:          s.pins[endpoint.Name],
		Credentials:            s.credentials,
		Systems:                spec.Systems,
		Features:               union(spec.SupportedFeatures, spec.MandatoryFeatures),
		Discovery:              spec.Discovery != v1alpha1.DiscoveryDisabled,
		Canary:                 spec.Probe.Canary == v1alpha1.CanaryEnabled,
		Interval:               time.Duration(spec.Probe.IntervalSeconds) * time.Second,
		Timeout:                time.Duration(spec.Probe.TimeoutSeconds) * time.Second,
		FailureThreshold:       int(spec.Probe.FailureThreshold),
		Restored:               restored(s.builder.Status.Endpoint(endpoint.Name), endpoint.Address(), s.now),
	}
}

// union joins two sets, sorted.
func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// restored makes of an endpoint's status what the prober knew when it was
// written, or nil if it says nothing about the machine at that address. A
// machine that status calls healthy counts as such until now.
func restored(status *v1alpha1.EndpointStatus, address string, now time.Time) *probe.Snapshot {
	if status == nil || status.Address != address || status.State == v1alpha1.EndpointUnknown {
		return nil
	}
	if status.FailedCondition != "" && !slices.Contains(probe.Steps(), probe.Step(status.FailedCondition)) {
		return nil
	}
	snapshot := &probe.Snapshot{
		State:   probe.State(status.State),
		Reason:  probe.Reason(status.Reason),
		Message: status.Message,
		Result: probe.Result{
			Outcomes: restoredOutcomes(status),
			Facts: probe.Facts{
				NixVersion:         status.NixVersion,
				ProtocolVersion:    status.ProtocolVersion,
				Systems:            status.Systems,
				Refuted:            status.RefutedSystems,
				Features:           status.Features,
				MaxJobs:            int(status.MaxJobs),
				HostKey:            status.HostKey,
				HostKeyFingerprint: fingerprint(status.HostKey),
				Credential:         status.Credential,
			},
		},
	}
	if status.LastTransitionTime != nil {
		snapshot.Since = status.LastTransitionTime.Time
	}
	switch {
	case status.LastHealthyTime != nil:
		snapshot.LastHealthy = status.LastHealthyTime.Time
	case status.State == v1alpha1.EndpointHealthy:
		snapshot.LastHealthy = now
	}
	return snapshot
}

// restoredOutcomes is the inverse of endpointStatus: the first condition that
// is not True tells about those before and after it.
func restoredOutcomes(status *v1alpha1.EndpointStatus) []probe.Outcome {
	healthy := status.State == v1alpha1.EndpointHealthy
	var outcomes []probe.Outcome
	passed := true
	for _, step := range probe.Steps() {
		outcome := probe.Outcome{Step: step, Status: probe.StatusTrue}
		switch {
		case string(step) == status.FailedCondition:
			outcome.Status = probe.StatusFalse
			if healthy && !probe.Reason(status.Reason).StaysInUse() {
				outcome.Status = probe.StatusUnknown
			}
			outcome.Reason, outcome.Message = probe.Reason(status.Reason), status.Message
			passed = false
		case !passed && !healthy:
			outcome.Status, outcome.Reason = probe.StatusUnknown, probe.ReasonNotReached
		}
		outcomes = append(outcomes, outcome)
	}
	return outcomes
}
