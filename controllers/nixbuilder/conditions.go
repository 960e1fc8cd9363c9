// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// passed gives reason and message of the conditions of the prober's steps while
// they hold for every endpoint.
func passed(step probe.Step, user string) verdict {
	switch step {
	case probe.StepReachable:
		return holds(string(probe.ReasonConnected), "an SSH server answers")
	case probe.StepHostKeyVerified:
		return holds(string(probe.ReasonHostKeyMatches), "the host key is the expected one")
	case probe.StepAuthenticated:
		return holds(string(probe.ReasonAuthenticated), fmt.Sprintf("logged in as %s", user))
	case probe.StepNixAvailable:
		return holds(string(probe.ReasonNixAnswers), "nix-daemon answers")
	case probe.StepTrusted:
		return holds(string(probe.ReasonUserTrusted), fmt.Sprintf("nix-daemon trusts %s", user))
	case probe.StepMachineFit:
		return holds(string(probe.ReasonMachineFit), "disk, load and clock are within spec.thresholds")
	default:
		return holds(string(probe.ReasonSystemsVerified), "the declared systems and features are those of the machine")
	}
}

// conditions computes all conditions from what this pass has learned. Those
// whose status is as before keep the time of their last transition.
func (s *scope) conditions(endpoints []v1alpha1.EndpointStatus) []metav1.Condition {
	var out []metav1.Condition
	add := func(conditionType string, v verdict) {
		condition := metav1.Condition{
			Type:               conditionType,
			Status:             v.status,
			Reason:             v.reason,
			Message:            v.message,
			ObservedGeneration: s.builder.Generation,
			LastTransitionTime: metav1.NewTime(s.now.Truncate(time.Second)),
		}
		if old := s.builder.Status.Condition(conditionType); old != nil && old.Status == v.status {
			condition.LastTransitionTime = old.LastTransitionTime
		}
		out = append(out, condition)
	}
	add(v1alpha1.ConditionAccepted, s.accepted)
	add(v1alpha1.ConditionCredentialsValid, s.credentialsValid)
	for _, step := range probe.Steps() {
		add(string(step), s.stepVerdict(step))
	}
	add(v1alpha1.ConditionReady, s.ready(endpoints))
	if v, ok := cordoned(endpoints); ok {
		add(v1alpha1.ConditionCordoned, v)
	}
	return out
}

// stepVerdict folds the outcomes of a step at all endpoints that are not
// cordoned: the first failure goes before the first doubt.
func (s *scope) stepVerdict(step probe.Step) verdict {
	switch {
	case s.accepted.status != metav1.ConditionTrue:
		return unknown(v1alpha1.ReasonNotAccepted, notAcceptedMessage)
	case len(s.credentials) == 0:
		return unknown(v1alpha1.ReasonNoCredential, noCredentialMessage)
	}
	var failure, doubt verdict
	failures, doubts, total := 0, 0, 0
	for i := range s.builder.Spec.Endpoints {
		endpoint := &s.builder.Spec.Endpoints[i]
		if s.cordon(endpoint) != nil {
			continue
		}
		total++
		snapshot := s.snapshots[endpoint.Name]
		outcome := snapshot.Result.Outcome(step)
		message := s.outcomeMessage(endpoint, &outcome)
		switch outcome.Status {
		case probe.StatusTrue:
		case probe.StatusFalse:
			if failures++; failures == 1 {
				failure = fails(string(outcome.Reason), message)
			}
		default:
			if doubts++; doubts == 1 {
				doubt = unknown(string(outcome.Reason), message)
			}
		}
	}
	switch {
	case total == 0:
		return unknown(v1alpha1.ReasonCordoned, "every endpoint is cordoned")
	case failures > 0:
		failure.message += count(failures, total)
		return failure
	case doubts > 0:
		doubt.message += count(doubts, total)
		return doubt
	}
	return passed(step, s.builder.Spec.User)
}

// outcomeMessage is what a condition says of the outcome of its step at an endpoint.
func (s *scope) outcomeMessage(endpoint *v1alpha1.Endpoint, outcome *probe.Outcome) string {
	switch {
	case outcome.Reason == probe.ReasonNotReached:
		return endpoint.Name + ": not checked, because an earlier condition is not True"
	case outcome.Reason == probe.ReasonNotProbed:
		return endpoint.Name + ": " + notProbedMessage
	case outcome.Step == probe.StepHostKeyVerified && outcome.Status == probe.StatusFalse:
		if mistake := annotationMistake(s.builder, endpoint, s.snapshots[endpoint.Name].Result.Facts); mistake != "" {
			return outcome.Message + ". Annotation " + v1alpha1.AcceptHostKeyAnnotation + " has no effect: " + mistake
		}
	}
	return outcome.Message
}

// about is what an endpoint's status says, with the endpoint's name.
func about(endpoint *v1alpha1.EndpointStatus) string {
	if strings.HasPrefix(endpoint.Message, endpoint.Name+" ") {
		return endpoint.Message // The prober's messages begin with it.
	}
	return endpoint.Name + ": " + endpoint.Message
}

// count tells how many endpoints a condition does not hold for.
func count(n, total int) string {
	if total == 1 {
		return ""
	}
	return fmt.Sprintf(" (%d of %d endpoints)", n, total)
}

// ready is the summary: True while every system has an endpoint in use, else
// with the reason of an endpoint that should serve the first one that has none.
func (s *scope) ready(endpoints []v1alpha1.EndpointStatus) verdict {
	switch {
	case s.accepted.status != metav1.ConditionTrue:
		return fails(s.accepted.reason, s.accepted.message)
	case len(s.credentials) == 0:
		return fails(s.credentialsValid.reason, s.credentialsValid.message)
	}
	var candidates []v1alpha1.EndpointStatus
	for i := range s.builder.Spec.Endpoints {
		if s.cordon(&s.builder.Spec.Endpoints[i]) == nil {
			candidates = append(candidates, endpoints[i])
		}
	}
	if len(candidates) == 0 {
		return fails(v1alpha1.ReasonCordoned, allCordoned(endpoints))
	}
	var systems []string
	for _, candidate := range candidates {
		systems = append(systems, candidate.Systems...)
	}
	// What a spec declares is expected, whatever was refuted; of what a machine says
	// of itself, only what remains.
	systems = append(systems, s.builder.Spec.Systems...)
	slices.Sort(systems)
	systems = slices.Compact(systems)
	if len(systems) == 0 {
		return s.unserved("", candidates)
	}
	for _, system := range systems {
		if !slices.ContainsFunc(candidates, func(e v1alpha1.EndpointStatus) bool {
			return e.InUse() && slices.Contains(e.Systems, system) && len(s.builder.Spec.Lacking(&e)) == 0
		}) {
			return s.unserved(system, candidates)
		}
	}
	return s.inUse(candidates)
}

// unserved tells why a system has no endpoint in use; "" stands for all while
// none is known.
func (s *scope) unserved(system string, candidates []v1alpha1.EndpointStatus) verdict {
	var first *v1alpha1.EndpointStatus
	for i := range candidates {
		candidate := &candidates[i]
		refuted := slices.Contains(candidate.RefutedSystems, system) || len(s.builder.Spec.Lacking(candidate)) > 0
		if !refuted && (candidate.InUse() || system != "" && !slices.Contains(candidate.Systems, system)) {
			continue
		}
		if candidate.State == v1alpha1.EndpointUnknown {
			return unknown(v1alpha1.ReasonNotProbed, about(candidate))
		}
		if first == nil {
			first = candidate
		}
	}
	if first == nil {
		return fails(v1alpha1.ReasonSystemsUnknown,
			"the machines can be used, but do not tell for which systems: list them in spec.systems")
	}
	message := about(first)
	if system != "" {
		message = fmt.Sprintf("no endpoint for %s: %s", system, message)
	}
	return fails(first.Reason, message)
}

// inUse tells whether all endpoints are as they should be.
func (s *scope) inUse(candidates []v1alpha1.EndpointStatus) verdict {
	var away []string
	for i := range candidates {
		if candidates[i].State != v1alpha1.EndpointHealthy {
			away = append(away, about(&candidates[i]))
		}
	}
	if len(away) == 0 {
		return holds(v1alpha1.ReasonAllHealthy, "every endpoint is healthy"+s.doubt(candidates))
	}
	return holds(v1alpha1.ReasonDegraded, away[0]+count(len(away), len(candidates)))
}

// doubt is what the summary adds of the first endpoint in use at which something is to
// be corrected, perhaps: else nobody would look for it. The words are those of the
// step's condition, so they change no more often than that does.
func (s *scope) doubt(candidates []v1alpha1.EndpointStatus) string {
	for i := range candidates {
		snapshot := s.snapshots[candidates[i].Name]
		for _, outcome := range snapshot.Result.Outcomes {
			if outcome.Status == probe.StatusUnknown && outcome.Reason.NotConfirmed() {
				return ", with a doubt: " + outcome.Message
			}
		}
	}
	return ""
}
