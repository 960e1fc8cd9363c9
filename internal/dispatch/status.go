// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"cmp"
	"slices"
	"strings"
	"time"
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

// Status is what a server does at one moment.
type Status struct {
	// Time is the moment.
	Time time.Time
	// Version is the dispatcher's.
	Version string
	// Draining is set once the server shuts down and takes no more builds.
	Draining bool
	// Connections is the number of clients' connections.
	Connections int
	// Builds has the unfinished ones, the oldest first.
	Builds []BuildStatus
}

// BuildStatus is one unfinished build.
type BuildStatus struct {
	// Derivation is its store path, Name the part of it that people know.
	Derivation string
	Name       string
	// System and Features are what it needs of a builder.
	System   string
	Features []string
	// Phase is one of the Phase constants.
	Phase string
	// Builder is the ID of the one that has the build; empty while it waits.
	Builder string
	// Since is when the dispatcher was asked for the build, PhaseSince when its
	// phase began.
	Since      time.Time
	PhaseSince time.Time
	// Waiting says why the build waits, as its users see it.
	Waiting string
	// Clients is how many connections wait for the result.
	Clients int
	// Lost has the builders that were lost with the build on them, in order.
	Lost []string
}

// Status returns what the server does now.
func (s *Server) Status() Status {
	now := time.Now()
	status := Status{
		Time: now, Version: s.opts.Version,
		Draining: s.draining.Err() != nil, Connections: s.Connections(),
		Builds: s.jobs.status(),
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
