// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package statuspage

import "time"

// SchemaVersion is the version of [Document]. It grows when a field is removed or
// changes its meaning, not when one is added.
const SchemaVersion = 1

// State says whether a builder takes new builds.
type State string

// States of a builder.
const (
	// StateHealthy means that it takes builds.
	StateHealthy State = "Healthy"
	// StateCordoned means that it was taken out of service; what it runs finishes.
	StateCordoned State = "Cordoned"
	// StateDown means that it cannot be used.
	StateDown State = "Down"
)

// Document is what a dispatcher does at one moment, as served in JSON. Lists are
// never null.
type Document struct {
	SchemaVersion int `json:"schemaVersion"`
	// Time is the moment.
	Time time.Time `json:"time"`
	// Version is that of the dispatcher, Started when it was started.
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Stopping is set once the dispatcher has been told to end: builds finish, new
	// ones are refused.
	Stopping bool `json:"stopping"`
	// ClientConnections is the number of connections of Nix clients.
	ClientConnections int       `json:"clientConnections"`
	Builders          []Builder `json:"builders"`
	// Running are the builds that have a builder, Waiting those that have none, by
	// position.
	Running []Build `json:"running"`
	Waiting []Build `json:"waiting"`
	Spool   Spool   `json:"spool"`
}

// Builder is one machine.
type Builder struct {
	// ID is the NixBuilder and its endpoint, "mac/mac-2".
	ID    string `json:"id"`
	State State  `json:"state"`
	// Reason says in a few words why it is not healthy, Since from when on if that
	// is known, Until when a cordon ends.
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	Until  time.Time `json:"until,omitzero"`

	Systems           []string `json:"systems"`
	SupportedFeatures []string `json:"supportedFeatures"`
	MandatoryFeatures []string `json:"mandatoryFeatures"`

	// Slots is how many builds it may run at once, Used how many of them are
	// counted as taken. Orphaned are those of Used whose build was lost by silence
	// and may still run.
	Slots    int `json:"slots"`
	Used     int `json:"used"`
	Orphaned int `json:"orphaned"`
	// SpeedFactor is relative to other builders.
	SpeedFactor int `json:"speedFactor"`

	Connections Connections `json:"connections"`
	Sessions    Sessions    `json:"sessions"`
}

// Connections counts a builder's SSH connections.
type Connections struct {
	// Interactive ones carry builds, Bulk ones large transfers. Handshakes are
	// under way.
	Interactive int `json:"interactive"`
	Bulk        int `json:"bulk"`
	Handshakes  int `json:"handshakes"`
}

// Sessions counts a builder's nix-daemon sessions.
type Sessions struct {
	// Busy ones are in use, Idle ones ready for the next build.
	Busy int `json:"busy"`
	Idle int `json:"idle"`
	// PerConnection is how many its sshd admits on one connection, as far as is
	// known.
	PerConnection int `json:"perConnection"`
}

// Build is one derivation on its way.
type Build struct {
	// Derivation is its store path, Name what it is called.
	Derivation string `json:"derivation"`
	Name       string `json:"name"`
	// System and Features are what it requires.
	System   string   `json:"system"`
	Features []string `json:"features"`
	// Phase is Queued, Uploading, Building, Answering or Returning.
	Phase string `json:"phase"`
	// Builder has the build; empty while it waits.
	Builder string `json:"builder,omitempty"`
	// Since is when it was asked for, PhaseSince when its phase began.
	Since      time.Time `json:"since"`
	PhaseSince time.Time `json:"phaseSince"`
	// Position counts from 1 for the next among the builds that could use the same
	// builders; 0 if it has a builder. Reason says what it waits for.
	Position int    `json:"position,omitempty"`
	Reason   string `json:"reason,omitempty"`
	// Clients is how many of them follow it.
	Clients int `json:"clients"`
	// Lost are the builders that were lost with the build on them, in order.
	Lost []string `json:"lost"`
}

// Spool is the store of NARs on disk.
type Spool struct {
	// Paths is the number of store paths, InUse how many of them builds need.
	Paths int `json:"paths"`
	InUse int `json:"inUse"`
	// Bytes is the space taken, MaxBytes the limit.
	Bytes    int64 `json:"bytes"`
	MaxBytes int64 `json:"maxBytes"`
	// Evictions, Refusals and Failures count, since the start, NARs that were
	// dropped for others, that found no room, and that could not be written.
	Evictions uint64 `json:"evictions"`
	Refusals  uint64 `json:"refusals"`
	Failures  uint64 `json:"failures"`
}
