// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"regexp"
	"slices"
	"strings"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// restored makes of an endpoint's status what the prober knew when it was
// written, or nil if it says nothing about the machine at that address. A
// machine that status calls healthy counts as such until now.
func (s *scope) restored(endpoint *v1alpha1.Endpoint) *probe.Snapshot {
	status := s.builder.Status.Endpoint(endpoint.Name)
	if status == nil || status.Address != endpoint.Address() || status.State == v1alpha1.EndpointUnknown {
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
			Outcomes: s.restoredOutcomes(status),
			Facts: probe.Facts{
				NixVersion:         status.NixVersion,
				ProtocolVersion:    status.ProtocolVersion,
				Systems:            status.Systems,
				Refuted:            status.RefutedSystems,
				Features:           status.Features,
				RefutedFeatures:    status.RefutedFeatures,
				MaxJobs:            int(status.MaxJobs),
				Cores:              int(status.Cores),
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
		snapshot.LastHealthy = s.now
	}
	return snapshot
}

// restoredOutcomes is the inverse of endpointStatus. The condition that says most
// about an endpoint tells about those before and after it. It may be the one that
// conditions of other steps name, too.
func (s *scope) restoredOutcomes(status *v1alpha1.EndpointStatus) []probe.Outcome {
	healthy := status.State == v1alpha1.EndpointHealthy
	var outcomes []probe.Outcome
	passed, full := true, false
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
		case full: // nothing more is asked of a daemon on a full disk
			outcome.Status, outcome.Reason = probe.StatusUnknown, probe.ReasonNotReached
		case passed, healthy:
			s.nameAlso(status.Name, &outcome)
			full = outcome.Reason == probe.ReasonStoreFull
		case !passed:
			outcome.Status, outcome.Reason = probe.StatusUnknown, probe.ReasonNotReached
		}
		outcomes = append(outcomes, outcome)
	}
	return outcomes
}

// counted is what a condition says after the message of its first endpoint.
var counted = regexp.MustCompile(` \((\d+) of (\d+) endpoints\)$`)

// nameAlso turns the outcome of a step that did not take an endpoint out of use into
// what the step's condition says of it: if it is the one that the condition names, or
// the condition is about all of them.
func (s *scope) nameAlso(endpoint string, outcome *probe.Outcome) {
	condition := s.builder.Status.Condition(string(outcome.Step))
	if condition == nil || !strings.HasPrefix(condition.Message, endpoint+" (") && !s.aboutAll(endpoint, condition.Message) {
		return
	}
	switch reason := probe.Reason(condition.Reason); {
	case reason == probe.ReasonNotReached:
	case probe.Status(condition.Status) == probe.StatusUnknown,
		probe.Status(condition.Status) == probe.StatusFalse && reason.StaysInUse():
		outcome.Status, outcome.Reason = probe.Status(condition.Status), reason
		outcome.Message = counted.ReplaceAllString(condition.Message, "")
	}
}

// aboutAll tells whether what a condition says is about every endpoint that counts, this
// one included.
func (s *scope) aboutAll(endpoint, message string) bool {
	given := slices.IndexFunc(s.builder.Spec.Endpoints, func(e v1alpha1.Endpoint) bool { return e.Name == endpoint })
	count := counted.FindStringSubmatch(message)
	return given >= 0 && s.cordon(&s.builder.Spec.Endpoints[given]) == nil && count != nil && count[1] == count[2]
}
