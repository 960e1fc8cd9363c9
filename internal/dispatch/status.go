// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// Phase is where a build is.
type Phase string

// Phases of a build, in this order. A build that loses its builder is queued
// again.
const (
	// PhaseQueued waits for a slot, or for a session on the builder that has it.
	PhaseQueued Phase = "Queued"
	// PhaseUploading asks the builder what it lacks and sends that.
	PhaseUploading Phase = "Uploading"
	// PhaseBuilding has sent the derivation and waits for the result.
	PhaseBuilding Phase = "Building"
	// PhaseAnswering has the result and asks what the outputs are.
	PhaseAnswering Phase = "Answering"
	// PhaseReturning fetches the outputs into the spool.
	PhaseReturning Phase = "Returning"
)

// Status is what a server does at one moment. Its JSON form is for people and
// monitoring: fields may be added, and store paths are those of derivations only.
type Status struct {
	// Time is the moment.
	Time time.Time `json:"time"`
	// Version is the dispatcher's.
	Version string `json:"version"`
	// Draining is set once the server shuts down and takes no more builds.
	Draining bool `json:"draining"`
	// Connections is the number of clients' connections.
	Connections int `json:"connections"`
	// Builds has the unfinished ones, the oldest first.
	Builds []BuildStatus `json:"builds"`
	// Builders has all known ones, in order of ID.
	Builders []BuilderStatus `json:"builders"`
}

// BuildStatus is one unfinished build.
type BuildStatus struct {
	// Derivation is its store path, Name the part of it that people know.
	Derivation string `json:"derivation"`
	Name       string `json:"name"`
	// System and Features are what it needs of a builder.
	System   string   `json:"system"`
	Features []string `json:"features,omitempty"`
	// Phase is one of the Phase constants.
	Phase string `json:"phase"`
	// Builder is the ID of the one that has the build; empty while it waits.
	Builder string `json:"builder,omitempty"`
	// Since is when the dispatcher was asked for the build, PhaseSince when its
	// phase began.
	Since      time.Time `json:"since"`
	PhaseSince time.Time `json:"phaseSince"`
	// Waiting says why the build waits, as its users see it.
	Waiting string `json:"waiting,omitempty"`
	// Clients is how many connections wait for the result.
	Clients int `json:"clients"`
	// Lost has the builders that were lost with the build on them, in order.
	Lost []string `json:"lost,omitempty"`
}

// BuilderStatus is one builder as the dispatcher sees it.
type BuilderStatus struct {
	ID       string   `json:"id"`
	Systems  []string `json:"systems"`
	Features []string `json:"features,omitempty"`
	// Mandatory are the features that a build must require.
	Mandatory []string `json:"mandatory,omitempty"`
	// Slots is how many builds it may run at once, Running how many it runs for
	// this dispatcher.
	Slots   int `json:"slots"`
	Running int `json:"running"`
	Speed   int `json:"speed"`
	// Down says why it cannot be used, Since when that began.
	Down  string     `json:"down,omitempty"`
	Since *time.Time `json:"since,omitempty"`
	// Cordoned is set while it takes no new builds, with the reason given and the
	// end, if it has one.
	Cordoned     bool       `json:"cordoned"`
	CordonReason string     `json:"cordonReason,omitempty"`
	CordonUntil  *time.Time `json:"cordonUntil,omitempty"`
}

// Status returns what the server does now.
func (s *Server) Status() Status {
	now := time.Now()
	status := Status{
		Time: now, Version: s.opts.Version,
		Draining: s.draining.Err() != nil, Connections: s.Connections(),
		Builds: s.jobs.status(), Builders: []BuilderStatus{},
	}
	running := map[string]int{}
	for _, b := range status.Builds {
		if b.Builder != "" {
			running[b.Builder]++
		}
	}
	for _, b := range s.opts.Builders.Builders() {
		status.Builders = append(status.Builders, builderStatus(b, running[b.ID], now))
	}
	slices.SortStableFunc(status.Builds, func(a, b BuildStatus) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Derivation, b.Derivation))
	})
	return status
}

// Phases counts the unfinished builds in every phase.
func (s *Server) Phases() map[string]int {
	counts := map[string]int{}
	for _, p := range []Phase{PhaseQueued, PhaseUploading, PhaseBuilding, PhaseAnswering, PhaseReturning} {
		counts[string(p)] = 0
	}
	for _, b := range s.jobs.status() {
		counts[b.Phase]++
	}
	return counts
}

func builderStatus(b scheduler.Builder, running int, now time.Time) BuilderStatus {
	status := BuilderStatus{
		ID: b.ID, Systems: b.Systems, Features: b.Supported, Mandatory: b.Mandatory,
		Slots: b.Slots, Running: running, Speed: b.Speed,
		Down: b.Down, Since: whenSet(b.Since), Cordoned: b.Cordoned(now),
	}
	if status.Cordoned {
		status.CordonReason, status.CordonUntil = b.Cordon.Reason, whenSet(b.Cordon.Until)
	}
	return status
}

func whenSet(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
