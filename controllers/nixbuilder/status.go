// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

const (
	notAcceptedMessage  = "nothing is tried while condition Accepted is False"
	notProbedMessage    = "not probed yet"
	noCredentialMessage = "nothing is tried without a usable key: see condition CredentialsValid"
)

// What a builder may tell of itself: the same that a spec may declare. Anything
// else would not survive in a machines file.
var (
	systemPattern  = regexp.MustCompile(`^[A-Za-z0-9_]+(-[A-Za-z0-9_]+)+$`)
	featurePattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+-]*$`)
)

// maxJobsLimit is the most builds at once that a spec may declare for a machine.
const maxJobsLimit = 1024

// maxDiscovered is the most bytes of systems, and of features, that are kept of
// one machine: all that 64 machines may say has to fit into an object.
const maxDiscovered = 2048

// status computes the whole status from what this pass has learned.
func (s *scope) status() v1alpha1.NixBuilderStatus {
	builder := s.builder
	status := v1alpha1.NixBuilderStatus{
		ObservedGeneration: builder.Generation,
		TotalEndpoints:     int32(len(builder.Spec.Endpoints)),
	}
	var systems, versions []string
	cordoned := 0
	for i := range builder.Spec.Endpoints {
		endpoint := &builder.Spec.Endpoints[i]
		entry := s.endpointStatus(endpoint)
		if entry.State == v1alpha1.EndpointHealthy {
			status.HealthyEndpoints++
		}
		if entry.Cordon == nil {
			status.Jobs += entry.MaxJobs
		} else {
			cordoned++
		}
		systems = append(systems, entry.Systems...)
		if entry.NixVersion != "" {
			versions = append(versions, entry.NixVersion)
		}
		status.Endpoints = append(status.Endpoints, entry)
	}
	status.Healthy = fmt.Sprintf("%d/%d", status.HealthyEndpoints, status.TotalEndpoints)
	if cordoned > 0 {
		status.Cordoned = fmt.Sprintf("%d/%d", cordoned, status.TotalEndpoints)
	}
	status.Systems = display(systems)
	status.Nix = display(versions)
	status.Conditions = s.conditions(status.Endpoints)
	status.LastProbe = s.lastProbe()
	return status
}

// endpointStatus computes the status of one endpoint. restored is its inverse.
func (s *scope) endpointStatus(endpoint *v1alpha1.Endpoint) v1alpha1.EndpointStatus {
	entry := v1alpha1.EndpointStatus{Name: endpoint.Name, Address: endpoint.Address(), Cordon: s.cordon(endpoint).DeepCopy()}
	old := s.builder.Status.Endpoint(endpoint.Name)
	if old == nil {
		old = &v1alpha1.EndpointStatus{}
	}
	sameMachine := old.Address == entry.Address
	snapshot := s.snapshots[endpoint.Name]
	facts := snapshot.Result.Facts

	entry.State, entry.FailedCondition, entry.Reason, entry.Message = s.endpointState(&snapshot)
	if old.State == entry.State && sameMachine {
		entry.LastTransitionTime = old.LastTransitionTime
	}
	if entry.LastTransitionTime == nil {
		entry.LastTransitionTime = atSecond(s.now)
	}
	if entry.State != v1alpha1.EndpointHealthy {
		switch {
		case !snapshot.LastHealthy.IsZero():
			entry.LastHealthyTime = atSecond(snapshot.LastHealthy)
		case sameMachine && old.State == v1alpha1.EndpointHealthy:
			entry.LastHealthyTime = atSecond(s.now)
		case sameMachine:
			entry.LastHealthyTime = old.LastHealthyTime
		}
	}

	// What was learned once stays until the machine says something else. Of
	// another machine nothing is known, but the key that it is held to.
	if !sameMachine {
		known := v1alpha1.EndpointStatus{}
		if usesPin(&s.builder.Spec, endpoint) {
			known.HostKey = old.HostKey
		}
		old = &known
	}
	entry.NixVersion = clip(orElse(facts.NixVersion, old.NixVersion), v1alpha1.MaxTextLength)
	entry.ProtocolVersion = clip(orElse(facts.ProtocolVersion, old.ProtocolVersion), v1alpha1.MaxTextLength)
	entry.Credential = orElse(facts.Credential, old.Credential)
	entry.HostKey = s.hostKey(endpoint, facts, old)
	s.settings(&entry, endpoint, facts, old)
	return entry
}

// endpointState tells state, the condition that says most, reason and message.
func (s *scope) endpointState(snapshot *probe.Snapshot) (state v1alpha1.EndpointState, condition, reason, message string) {
	switch {
	case s.accepted.status != metav1.ConditionTrue:
		return v1alpha1.EndpointUnknown, v1alpha1.ConditionAccepted, v1alpha1.ReasonNotAccepted, notAcceptedMessage
	case len(s.credentials) == 0:
		return v1alpha1.EndpointUnhealthy, v1alpha1.ConditionCredentialsValid, s.credentialsValid.reason,
			clip(s.credentialsValid.message, v1alpha1.MaxMessageLength)
	case snapshot.State == "" || snapshot.State == probe.StateUnknown:
		return v1alpha1.EndpointUnknown, "", v1alpha1.ReasonNotProbed, notProbedMessage
	}
	state = v1alpha1.EndpointState(snapshot.State)
	if snapshot.State == probe.StateSuspect && !snapshot.Usable() {
		state = v1alpha1.EndpointUnhealthy
	}
	reason, message = string(snapshot.Reason), snapshot.Message
	if outcome, ok := telling(&snapshot.Result); ok {
		condition, reason, message = string(outcome.Step), string(outcome.Reason), outcome.Message
	}
	return state, condition, clip(reason, v1alpha1.MaxTextLength), clip(message, v1alpha1.MaxMessageLength)
}

// telling is the outcome that says most about an endpoint: what takes it out of use,
// else the first that does not hold, else the first doubt.
func telling(result *probe.Result) (probe.Outcome, bool) {
	if failure, failed := result.Failure(); failed {
		return failure, true
	}
	for _, status := range []probe.Status{probe.StatusFalse, probe.StatusUnknown} {
		for _, outcome := range result.Outcomes {
			if outcome.Status == status {
				return outcome, true
			}
		}
	}
	return probe.Outcome{}, false
}

// hostKey is the pin where the endpoint has one, else the key last verified.
func (s *scope) hostKey(endpoint *v1alpha1.Endpoint, facts probe.Facts, old *v1alpha1.EndpointStatus) string {
	key := orElse(facts.HostKey, old.HostKey)
	if usesPin(&s.builder.Spec, endpoint) && s.snapshots != nil {
		key = s.pins[endpoint.Name]
	}
	if len(key) > v1alpha1.MaxHostKeyLength {
		return "" // Half a key is worse than none.
	}
	return key
}

// settings fills what the endpoint is used for: the spec, else the builder's
// own word where discovery allows it; in any case without what was refuted.
func (s *scope) settings(entry *v1alpha1.EndpointStatus, endpoint *v1alpha1.Endpoint, facts probe.Facts, old *v1alpha1.EndpointStatus) {
	spec := &s.builder.Spec
	discovery := spec.Discovery != v1alpha1.DiscoveryDisabled
	seen := facts.ProtocolVersion != "" || old.ProtocolVersion != ""

	entry.Systems, entry.Features = spec.Systems, spec.SupportedFeatures
	if len(entry.Systems) == 0 && discovery {
		entry.Systems = discovered(facts.Systems, systemPattern, v1alpha1.MaxStatusSystems, old.Systems)
	}
	entry.RefutedSystems = discovered(facts.Refuted, systemPattern, v1alpha1.MaxStatusSystems, nil)
	entry.Systems = without(entry.Systems, entry.RefutedSystems)
	if len(entry.Features) == 0 && discovery {
		entry.Features = discovered(facts.Features, featurePattern, v1alpha1.MaxStatusFeatures, old.Features)
	}
	entry.RefutedFeatures = discovered(facts.RefutedFeatures, featurePattern, v1alpha1.MaxStatusFeatures, nil)
	entry.Features = without(entry.Features, entry.RefutedFeatures)
	entry.Cores = int32(min(max(facts.Cores, 0), math.MaxInt32))
	if facts.Features == nil {
		entry.Cores = orElse(entry.Cores, old.Cores)
	}
	entry.MaxJobs = orElse(endpoint.MaxJobs, spec.MaxJobs)
	if entry.MaxJobs == 0 && discovery {
		entry.MaxJobs = int32(min(max(facts.MaxJobs, 0), maxJobsLimit))
		if facts.Features == nil {
			// Features and jobs are told together or not at all.
			entry.MaxJobs = orElse(entry.MaxJobs, old.MaxJobs)
		}
	}
	if entry.MaxJobs == 0 && (seen || !discovery) {
		entry.MaxJobs = 1
	}
}

// without returns the items of a list that are not in another.
func without(list, others []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(item string) bool { return slices.Contains(others, item) })
}

// discovered sorts and bounds what a builder told of itself; where it told
// nothing, what it told earlier stands.
func discovered(told []string, pattern *regexp.Regexp, limit int, earlier []string) []string {
	if told == nil {
		return earlier
	}
	var kept []string
	for _, item := range told {
		if len(item) <= v1alpha1.MaxTextLength && pattern.MatchString(item) {
			kept = append(kept, item)
		}
	}
	slices.Sort(kept)
	kept = slices.Compact(kept)
	kept = kept[:min(len(kept), limit)]
	room := maxDiscovered
	for i, item := range kept {
		if room -= len(item); room < 0 {
			return kept[:i]
		}
	}
	return kept
}

// display joins a set for a column, with an end mark where it gets too long.
func display(items []string) string {
	const limit = 200
	items = slices.Clone(items)
	slices.Sort(items)
	items = slices.Compact(items)
	for n := range items {
		if joined := strings.Join(items[:n+1], ","); len(joined) > limit {
			return fmt.Sprintf("%s,+%d", strings.Join(items[:n], ","), len(items)-n)
		}
	}
	return strings.Join(items, ",")
}

// clip cuts text to a number of bytes, at the border of a character.
func clip(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const mark = "…"
	return strings.ToValidUTF8(text[:limit-len(mark)], "") + mark
}

// orElse returns the first of two values that is not zero.
func orElse[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// atSecond returns a time as the API server stores it, so that it compares equal
// to what is read back.
func atSecond(t time.Time) *metav1.Time {
	stored := metav1.NewTime(t.Truncate(time.Second))
	return &stored
}
