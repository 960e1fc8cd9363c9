// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// requestOf returns the value of annotation nixbuilder.io/probe-requested-at as far as
// it counts; "" asks for nothing.
func requestOf(builder *v1alpha1.NixBuilder) string {
	request := []rune(builder.Annotations[v1alpha1.ProbeRequestAnnotation])
	return string(request[:min(len(request), v1alpha1.MaxTextLength)])
}

// open returns the request that status does not answer yet, or "". What status
// answers is done for good: a new leader does not probe for it again.
func (s *scope) open() string {
	request := requestOf(s.builder)
	if last := s.builder.Status.LastProbe; last != nil && last.Request == request {
		return ""
	}
	return request
}

// requestProbe has the prober do what annotation nixbuilder.io/probe-requested-at asks
// for. The Secrets and the host keys that it does so with were read in this pass.
func (r *Reconciler) requestProbe(_ context.Context, s *scope) error {
	if request := s.open(); request != "" && s.probed() {
		r.prober.Request(s.key, request)
	}
	return nil
}

// ended returns the request that every endpoint was probed for last, or "". It is not
// the open one where another was made before that was answered: who goes on to ask
// is not to keep everybody else from an answer.
func (s *scope) ended() string {
	request := ""
	for i := range s.builder.Spec.Endpoints {
		requested := s.snapshots[s.builder.Spec.Endpoints[i].Name].Requested
		if requested == "" || request != "" && requested != request {
			return ""
		}
		request = requested
	}
	return request
}

// lastProbe is what the probe found that was asked for last. While one is under way it
// is that of the request before.
func (s *scope) lastProbe() *v1alpha1.LastProbe {
	last, request := s.builder.Status.LastProbe, s.open()
	if request == "" {
		return last
	}
	if s.probed() {
		if request = s.ended(); request == "" || last != nil && last.Request == request {
			return last
		}
	}
	answer := &v1alpha1.LastProbe{
		Request:        request,
		CompletionTime: *atSecond(s.now),
		Steps: []v1alpha1.ProbedStep{
			wholeStep(v1alpha1.ConditionAccepted, s.accepted),
			wholeStep(v1alpha1.ConditionCredentialsValid, s.credentialsValid),
		},
	}
	if !s.probed() {
		return answer
	}
	var ended time.Time
	for i := range s.builder.Spec.Endpoints {
		endpoint := &s.builder.Spec.Endpoints[i]
		snapshot := s.snapshots[endpoint.Name]
		result := &snapshot.RequestedResult
		if end := result.Started.Add(result.Duration); end.After(ended) {
			ended = end
		}
		answer.Endpoints = append(answer.Endpoints, v1alpha1.ProbedEndpoint{
			Name: endpoint.Name, Steps: s.probedSteps(endpoint, result),
		})
	}
	if !ended.IsZero() {
		answer.CompletionTime = *atSecond(ended)
	}
	return answer
}

// wholeStep is a step that is about the whole builder.
func wholeStep(conditionType string, v verdict) v1alpha1.ProbedStep {
	return v1alpha1.ProbedStep{
		Type: conditionType, Status: v.status,
		Reason: clip(v.reason, v1alpha1.MaxTextLength), Message: clip(v.message, v1alpha1.MaxMessageLength),
	}
}

// probedSteps tells of the steps of a probe of an endpoint.
func (s *scope) probedSteps(endpoint *v1alpha1.Endpoint, result *probe.Result) []v1alpha1.ProbedStep {
	steps := make([]v1alpha1.ProbedStep, 0, len(result.Outcomes))
	for i, outcome := range result.Outcomes {
		step := v1alpha1.ProbedStep{
			Type: string(outcome.Step), Status: metav1.ConditionStatus(outcome.Status),
			Reason: clip(string(outcome.Reason), v1alpha1.MaxTextLength), Message: outcome.Message,
		}
		if outcome.Status == probe.StatusFalse {
			step.Message = s.outcomeMessage(endpoint, &outcome)
		}
		step.Message = clip(step.Message, v1alpha1.MaxMessageLength)
		if i < len(result.Took) && result.Took[i] > 0 {
			// 0 would say that the step was not reached.
			step.DurationMilliseconds = max(result.Took[i].Milliseconds(), 1)
		}
		steps = append(steps, step)
	}
	return steps
}
