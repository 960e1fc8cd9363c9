// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"slices"
	"time"
)

// Step is a stage of a probe. Its text is the type of the condition it feeds.
type Step string

// The steps, in order.
const (
	StepReachable       Step = "Reachable"
	StepHostKeyVerified Step = "HostKeyVerified"
	StepAuthenticated   Step = "Authenticated"
	StepNixAvailable    Step = "NixAvailable"
	StepTrusted         Step = "Trusted"
	StepMachineFit      Step = "MachineFit"
	StepSystemsVerified Step = "SystemsVerified"
)

// Steps lists all steps in the order in which a probe passes them.
func Steps() []Step {
	return []Step{
		StepReachable, StepHostKeyVerified, StepAuthenticated,
		StepNixAvailable, StepTrusted, StepMachineFit, StepSystemsVerified,
	}
}

// Status is what is known about a step. Its texts are those of condition status.
type Status string

// The statuses. Unknown is what was not reached or could not be verified; it blocks
// nothing and removes nothing.
const (
	StatusTrue    Status = "True"
	StatusFalse   Status = "False"
	StatusUnknown Status = "Unknown"
)

// Outcome is what a probe found out about one step.
type Outcome struct {
	Step   Step
	Status Status
	// Reason is one of the constants of this package.
	Reason Reason
	// Message says what happened and, where something is to be changed, what. It is
	// at most MaxMessage bytes and does not vary while the situation does not.
	Message string
}

// Trust is what a builder's daemon says about the user.
type Trust string

// The kinds of trust.
const (
	TrustUnknown Trust = ""
	Trusted      Trust = "Trusted"
	NotTrusted   Trust = "NotTrusted"
)

// Facts are what a builder told about itself. Empty fields are not known. Slices
// are shared and must not be changed.
type Facts struct {
	// NixVersion is that of the nix-daemon program that answered.
	NixVersion string
	// ProtocolVersion is the worker protocol's, as "1.35".
	ProtocolVersion string
	Trust           Trust
	// Systems, Features, MaxJobs and Cores are as configured for the ssh user's own
	// processes, which may differ from the daemon's configuration.
	Systems  []string
	Features []string
	MaxJobs  int
	Cores    int
	// Refuted are systems that the builder turned out not to build for, and
	// RefutedFeatures features that its daemon lacks.
	Refuted         []string
	RefutedFeatures []string
	// HostKey is the verified host key as "type base64", with its fingerprint.
	HostKey            string
	HostKeyFingerprint string
	// OfferedHostKey is a host key that was presented and not accepted.
	OfferedHostKey            string
	OfferedHostKeyFingerprint string
	// Credential names the credential that logged in.
	Credential string

	// What was measured last. These figures differ from probe to probe, so they do
	// not count when facts are compared.

	// FreeBytes is the room for users other than root in the file system of the
	// store, StoreBytes the size of that; both are 0 where they are not known.
	FreeBytes  int64
	StoreBytes int64
	// Processors is how many are in use, 0 where that is not known. LoadPercent is
	// the load average of the last minute in percent of them.
	Processors  int
	LoadPercent int
	// PressureKnown tells whether the machine has Linux's pressure stall
	// information. The others are the parts of the last minute, in percent, in
	// which some process had to wait for a processor, for memory, or for a disk.
	PressureKnown                           bool
	CPUPressure, MemoryPressure, IOPressure int
	// ClockSkew is by how much the machine's clock is ahead, within a second or so.
	ClockSkew time.Duration
}

// equal tells whether two facts are the same, but for what was measured.
func (f Facts) equal(g Facts) bool {
	return f.NixVersion == g.NixVersion && f.ProtocolVersion == g.ProtocolVersion && f.Trust == g.Trust &&
		slices.Equal(f.Systems, g.Systems) && slices.Equal(f.Features, g.Features) &&
		f.MaxJobs == g.MaxJobs && f.Cores == g.Cores && slices.Equal(f.Refuted, g.Refuted) &&
		slices.Equal(f.RefutedFeatures, g.RefutedFeatures) &&
		f.HostKey == g.HostKey && f.OfferedHostKey == g.OfferedHostKey && f.Credential == g.Credential
}

// Result is what one probe found out.
type Result struct {
	// Outcomes has one entry per step, in order; nil before the first probe.
	Outcomes []Outcome
	Facts    Facts
	Started  time.Time
	Duration time.Duration
	// Took has one entry for each of Outcomes: how long that step took, zero where
	// it was not reached. It is nil where that is not known, as after a restart.
	Took []time.Duration
}

// Outcome finds the outcome of a step; before the first probe it is unknown.
func (r *Result) Outcome(step Step) Outcome {
	for _, outcome := range r.Outcomes {
		if outcome.Step == step {
			return outcome
		}
	}
	return Outcome{Step: step, Status: StatusUnknown, Reason: ReasonNotProbed, Message: messageNotProbed}
}

// Failure is the first step that failed in a way that takes the endpoint out of use.
// Being refuted for some systems, say, does not: it is of use for the others.
func (r *Result) Failure() (Outcome, bool) {
	for _, outcome := range r.Outcomes {
		if outcome.Status == StatusFalse && !outcome.Reason.StaysInUse() {
			return outcome, true
		}
	}
	return Outcome{}, false
}

// State is what an endpoint can be used for.
type State string

// The states of an endpoint.
const (
	// StateUnknown: not probed yet.
	StateUnknown State = "Unknown"
	// StateHealthy: the last probe passed every step.
	StateHealthy State = "Healthy"
	// StateSuspect: the last probes failed, fewer than the threshold.
	StateSuspect State = "Suspect"
	// StateUnhealthy: so many failed, or one in a way that time does not heal.
	StateUnhealthy State = "Unhealthy"
)

// Snapshot is what is known of an endpoint. It is a value to keep; its slices are
// shared and must not be changed.
type Snapshot struct {
	State State
	// Reason and Message are those of the first failed step, or of being healthy.
	Reason  Reason
	Message string
	// Since is when State or Reason became what they are.
	Since time.Time
	// LastHealthy is when a probe passed last; zero if none ever did.
	LastHealthy time.Time
	// Result is that of the last probe.
	Result Result
	// Requested is the token of the last requested probe that has ended, and
	// RequestedResult its result; see Prober.Request.
	Requested       string
	RequestedResult Result
}

// Usable tells whether builds may be sent there: it is healthy, or was until so
// recently that its failures are not held against it.
func (s *Snapshot) Usable() bool {
	return s.State == StateHealthy || s.State == StateSuspect && !s.LastHealthy.IsZero()
}

// sameFace tells whether two snapshots look the same from outside: times of probes
// and how long they took do not count. The answer to a request does.
func sameFace(a, b *Snapshot) bool {
	return a.Requested == b.Requested && a.State == b.State && a.Reason == b.Reason && a.Message == b.Message &&
		slices.Equal(a.Result.Outcomes, b.Result.Outcomes) && a.Result.Facts.equal(b.Result.Facts)
}
