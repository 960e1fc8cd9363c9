// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"fmt"
	"math"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// BuildMode says what a build is for.
type BuildMode uint64

// Build modes.
const (
	BuildNormal BuildMode = iota
	BuildRepair
	BuildCheck
)

// String names the mode with its code.
func (m BuildMode) String() string {
	switch m {
	case BuildNormal:
		return "normal (0)"
	case BuildRepair:
		return "repair (1)"
	case BuildCheck:
		return "check (2)"
	}
	return fmt.Sprintf("%d", uint64(m))
}

// BuildStatus is the outcome of a build.
type BuildStatus uint64

// Build statuses that every client of 1.34 and later knows.
const (
	StatusBuilt BuildStatus = iota
	StatusSubstituted
	StatusAlreadyValid
	StatusPermanentFailure
	StatusInputRejected
	StatusOutputRejected
	StatusTransientFailure
	StatusCachedFailure
	StatusTimedOut
	StatusMiscFailure
	StatusDependencyFailed
	StatusLogLimitExceeded
	StatusNotDeterministic
	StatusResolvesToAlreadyValid
	StatusNoSubstituters

	// statusHashMismatch is sent by newer daemons only; it was OutputRejected.
	statusHashMismatch BuildStatus = 15
)

var statusNames = [...]string{
	"Built", "Substituted", "AlreadyValid", "PermanentFailure", "InputRejected",
	"OutputRejected", "TransientFailure", "CachedFailure", "TimedOut", "MiscFailure",
	"DependencyFailed", "LogLimitExceeded", "NotDeterministic", "ResolvesToAlreadyValid",
	"NoSubstituters",
}

// String names the status with its code.
func (s BuildStatus) String() string {
	if s < BuildStatus(len(statusNames)) {
		return fmt.Sprintf("%s (%d)", statusNames[s], uint64(s))
	}
	return fmt.Sprintf("status %d", uint64(s))
}

// Success tells whether the outputs are there.
func (s BuildStatus) Success() bool {
	return s == StatusBuilt || s == StatusSubstituted || s == StatusAlreadyValid || s == StatusResolvesToAlreadyValid
}

// portable maps statuses that some clients refuse onto the nearest that all know.
func (s BuildStatus) portable() BuildStatus {
	switch {
	case s <= StatusNoSubstituters:
		return s
	case s == statusHashMismatch:
		return StatusOutputRejected
	}
	return StatusMiscFailure
}

// BuildResult is the reply to a build.
type BuildResult struct {
	// Status is always one of the constants: others are mapped when they are read
	// and when they are written.
	Status BuildStatus
	// ErrorMessage says why a build failed. It may hold ANSI colours.
	ErrorMessage string
	// TimesBuilt, StartTime and StopTime (seconds since 1970) are 0 from many
	// daemons.
	TimesBuilt          uint64
	NonDeterministic    bool
	StartTime, StopTime int64
	// CPUUser and CPUSystem exist from 1.37 on, so not on our own connections.
	CPUUser, CPUSystem *time.Duration
	BuiltOutputs       []BuiltOutput
}

// BuiltOutput is the realisation of one output. Both texts pass through as they
// are: newer daemons put a dummy hash into the ID and leave out most of the JSON.
type BuiltOutput struct {
	// ID is "sha256:<hex>!<output name>".
	ID string
	// Realisation is a JSON object with at least id and outPath (base name).
	Realisation string
}

// Name returns the name of the output, the only part of the ID to rely on.
func (o BuiltOutput) Name() string {
	return o.ID[strings.LastIndexByte(o.ID, '!')+1:]
}

func (b *BuildResult) encode(w *wire.Writer, version Version) {
	w.Uint64(uint64(b.Status.portable()))
	w.String(b.ErrorMessage)
	w.Uint64(b.TimesBuilt)
	w.Bool(b.NonDeterministic)
	w.Uint64(uint64(b.StartTime))
	w.Uint64(uint64(b.StopTime))
	if version >= versionCPUTimes {
		encodeMicros(w, b.CPUUser)
		encodeMicros(w, b.CPUSystem)
	}
	w.Uint64(uint64(len(b.BuiltOutputs)))
	for _, o := range b.BuiltOutputs {
		w.String(o.ID)
		w.String(o.Realisation)
	}
}

func encodeMicros(w *wire.Writer, d *time.Duration) {
	w.Bool(d != nil)
	if d != nil {
		w.Uint64(uint64(d.Microseconds()))
	}
}

func (d *decoder) buildResult() *BuildResult {
	b := &BuildResult{
		Status:           BuildStatus(d.Enum("build status", math.MaxUint8)).portable(),
		ErrorMessage:     d.String("build error", limitText),
		TimesBuilt:       d.Uint64("times built"),
		NonDeterministic: d.Bool("non-deterministic"),
		StartTime:        int64(d.Enum("start time", math.MaxInt64)),
		StopTime:         int64(d.Enum("stop time", math.MaxInt64)),
	}
	if d.version >= versionCPUTimes {
		b.CPUUser = d.micros("user CPU time")
		b.CPUSystem = d.micros("system CPU time")
	}
	n := d.Count("built output count", limitOutputs)
	for range n {
		b.BuiltOutputs = append(b.BuiltOutputs, BuiltOutput{
			ID:          d.String("built output id", limitName),
			Realisation: d.String("realisation", limitText),
		})
		if d.Err() != nil {
			return nil
		}
	}
	if d.Err() != nil {
		return nil
	}
	return b
}

// micros reads an optional duration in microseconds.
func (d *decoder) micros(field string) *time.Duration {
	if !d.Bool(field + " mark") {
		return nil
	}
	const most = math.MaxInt64 / uint64(time.Microsecond)
	v := time.Duration(d.Enum(field, most)) * time.Microsecond
	return &v
}
