// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// Actions of events: what the operator did when it noticed.
const (
	actionAccept      = "CheckSpec"
	actionCredentials = "ReadCredentials"
	actionProbe       = "Probe"
	actionUnlist      = "Unlist"
	actionPin         = "PinHostKey"
	actionCordon      = "Cordon"
	actionSummarise   = "Summarise"
)

// Reasons of events that are not reasons of conditions.
const (
	reasonHealthy         = "Healthy"
	reasonHostKeyPinned   = "HostKeyPinned"
	reasonHostKeyReplaced = "HostKeyReplaced"
	reasonUncordoned      = "Uncordoned"
	reasonCordonExpired   = "CordonExpired"
)

// maxNote is the most bytes in the note of an event that the API server takes.
const maxNote = 1024

// transition is something that changed between two statuses and is worth an
// event. endpoint is empty where it is about the whole builder.
type transition struct {
	warning bool
	// recurs tells that it may happen again and again without anybody's doing. Such
	// an event is counted where the same was told a few minutes ago, and its note
	// stays the first one's.
	recurs   bool
	endpoint string
	reason   string
	action   string
	note     string
}

// emit records the transition with the builder that it is about.
func (t transition) emit(recorder events.EventRecorder, builder *v1alpha1.NixBuilder) {
	eventType := corev1.EventTypeNormal
	if t.warning {
		eventType = corev1.EventTypeWarning
	}
	about := &corev1.ObjectReference{
		APIVersion: v1alpha1.GroupVersion.String(),
		Kind:       "NixBuilder",
		Namespace:  builder.Namespace,
		Name:       builder.Name,
		UID:        builder.UID,
	}
	if !t.recurs {
		// The recorder makes one series of events that are about the same.
		about.ResourceVersion = builder.ResourceVersion
	}
	if t.endpoint != "" {
		// Also keeps events about different endpoints from being counted as one.
		about.FieldPath = fmt.Sprintf("spec.endpoints{%s}", t.endpoint)
	}
	recorder.Eventf(about, nil, eventType, t.reason, t.action, "%s", clip(t.note, maxNote))
}

// transitions compares the status that a pass has read with the one after it.
func (s *scope) transitions(after *v1alpha1.NixBuilderStatus) []transition {
	before := &s.builder.Status
	var all []transition
	all = append(all, conditionTransitions(before, after, v1alpha1.ConditionAccepted, actionAccept)...)
	all = append(all, conditionTransitions(before, after, v1alpha1.ConditionCredentialsValid, actionCredentials)...)
	for i := range after.Endpoints {
		entry := &after.Endpoints[i]
		old := before.Endpoint(entry.Name)
		if old == nil {
			old = &v1alpha1.EndpointStatus{State: v1alpha1.EndpointUnknown}
		}
		if _, ok := s.pins[entry.Name]; ok {
			all = append(all, pinTransitions(old, entry)...)
		}
		all = append(all, endpointTransitions(old, entry, s.builder.Spec.Probe.FailureThreshold)...)
		all = append(all, s.refutationTransitions(old, entry)...)
	}
	all = append(all, s.expiredCordons()...)
	all = append(all, cordonTransitions(before, after)...)
	return append(all, summaryTransitions(before, after, all)...)
}

// told reports whether there is an event with that reason already.
func told(all []transition, reason string) bool {
	for _, t := range all {
		if t.reason == reason {
			return true
		}
	}
	return false
}

// summaryTransitions tells that Ready became True or False, where nothing told so
// far has the same reason. Which reason it is False for varies with the probes
// of a machine that fails now in this way and now in that, and is no news.
func summaryTransitions(before, after *v1alpha1.NixBuilderStatus, all []transition) []transition {
	old, now := before.Condition(v1alpha1.ConditionReady), after.Condition(v1alpha1.ConditionReady)
	switch {
	case now == nil, now.Status == metav1.ConditionUnknown,
		old != nil && old.Status == now.Status, told(all, now.Reason):
		return nil
	}
	return []transition{{
		warning: now.Status == metav1.ConditionFalse, recurs: true, reason: now.Reason, action: actionSummarise, note: now.Message,
	}}
}

// conditionTransitions tells that a condition began or ceased to be False, or is
// False for another reason.
func conditionTransitions(before, after *v1alpha1.NixBuilderStatus, conditionType, action string) []transition {
	old, now := before.Condition(conditionType), after.Condition(conditionType)
	if now == nil || old != nil && old.Status == now.Status && (now.Status != metav1.ConditionFalse || old.Reason == now.Reason) {
		return nil
	}
	switch {
	case now.Status == metav1.ConditionFalse:
		return []transition{{warning: true, reason: now.Reason, action: action, note: now.Message}}
	case now.Status == metav1.ConditionTrue && old != nil && old.Status == metav1.ConditionFalse:
		return []transition{{reason: now.Reason, action: action, note: now.Message}}
	}
	return nil
}

// endpointTransitions tells that a machine became healthy, ceased to be, or
// fails at another step than before. What is wrong with the whole builder is
// told by its conditions.
func endpointTransitions(old, entry *v1alpha1.EndpointStatus, threshold int32) []transition {
	switch {
	case entry.FailedCondition == v1alpha1.ConditionAccepted, entry.FailedCondition == v1alpha1.ConditionCredentialsValid,
		entry.State == v1alpha1.EndpointUnknown:
		return nil
	case entry.State == v1alpha1.EndpointHealthy:
		if old.State == v1alpha1.EndpointHealthy {
			return remarkTransitions(old, entry)
		}
		return append([]transition{{recurs: true, endpoint: entry.Name, reason: reasonHealthy, action: actionProbe, note: entry.Name + ": healthy"}},
			remarkTransitions(&v1alpha1.EndpointStatus{}, entry)...)
	case old.State == entry.State && old.FailedCondition == entry.FailedCondition:
		return nil
	}
	// The action keeps what follows from a failure apart in series of events.
	note, action := about(entry), actionProbe
	switch {
	case entry.State == v1alpha1.EndpointSuspect:
		note = withEnd(note, fmt.Sprintf(" (still used; out of use after %d failures in a row)", threshold))
	case old.InUse():
		note, action = withEnd(note, " (out of use now)"), actionUnlist
	}
	return []transition{{warning: true, recurs: true, endpoint: entry.Name, reason: entry.Reason, action: action, note: note}}
}

// remark is the reason for which somebody should look at a machine that is used all
// the same, or "".
func remark(entry *v1alpha1.EndpointStatus) probe.Reason {
	switch reason := probe.Reason(entry.Reason); reason {
	case probe.ReasonClockSkewed, probe.ReasonSystemsNotConfirmed, probe.ReasonFeaturesNotConfirmed:
		return reason
	}
	return ""
}

// remarkTransitions tells of something new about a machine that is healthy and not as
// it should be, or that this is over. What was refuted is told besides.
func remarkTransitions(old, entry *v1alpha1.EndpointStatus) []transition {
	before, now := remark(old), remark(entry)
	switch {
	case before == now:
		return nil
	case now != "":
		return []transition{{warning: true, recurs: true, endpoint: entry.Name, reason: string(now), action: actionProbe, note: about(entry)}}
	}
	over := probe.ReasonSystemsVerified
	if before == probe.ReasonClockSkewed {
		over = probe.ReasonMachineFit
	}
	return []transition{{recurs: true, endpoint: entry.Name, reason: string(over), action: actionProbe,
		note: fmt.Sprintf("%s: %s no more", entry.Name, before)}}
}

// refutationTransitions tells which systems and features a machine is no longer used
// for, or is again.
func (s *scope) refutationTransitions(old, entry *v1alpha1.EndpointStatus) []transition {
	before := slices.Concat(old.RefutedSystems, old.RefutedFeatures)
	now := slices.Concat(entry.RefutedSystems, entry.RefutedFeatures)
	switch {
	case slices.Equal(before, now), entry.State != v1alpha1.EndpointHealthy:
		return nil
	case len(now) > 0:
		reason := probe.ReasonFeaturesRefuted
		if len(entry.RefutedSystems) > 0 {
			reason = probe.ReasonSystemsRefuted
		}
		why := about(entry)
		snapshot := s.snapshots[entry.Name]
		if outcome := snapshot.Result.Outcome(probe.StepSystemsVerified); outcome.Status == probe.StatusFalse {
			why = outcome.Message // The entry may be about something else that is wrong besides.
		}
		return []transition{{warning: true, recurs: true, endpoint: entry.Name, reason: string(reason), action: actionProbe,
			note: withEnd(why, fmt.Sprintf(" (out of use for %s now)", strings.Join(now, ", ")))}}
	}
	return []transition{{recurs: true, endpoint: entry.Name, reason: string(probe.ReasonSystemsVerified), action: actionProbe,
		note: fmt.Sprintf("%s: in use again for %s", entry.Name, strings.Join(before, ", "))}}
}

// withEnd makes a note of a message and what is to stay at its end, however long
// the message is.
func withEnd(message, end string) string { return clip(message, maxNote-len(end)) + end }

// pinTransitions tells which host key a machine is held to from now on.
func pinTransitions(old, entry *v1alpha1.EndpointStatus) []transition {
	switch {
	case entry.HostKey == old.HostKey || entry.HostKey == "":
		return nil
	case old.HostKey == "":
		return []transition{{endpoint: entry.Name, reason: reasonHostKeyPinned, action: actionPin, note: fmt.Sprintf(
			"%s: host key %s seen first and pinned", entry.Name, fingerprint(entry.HostKey))}}
	}
	return []transition{{endpoint: entry.Name, reason: reasonHostKeyReplaced, action: actionPin, note: fmt.Sprintf(
		"%s: host key %s pinned in place of %s", entry.Name, fingerprint(entry.HostKey), fingerprint(old.HostKey))}}
}
