// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"slices"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/storepath"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// say shows a line to all who follow the job.
func (j *job) say(line string) error {
	return j.journal.Append(j.ctx, daemon.Next{Text: line + "\n"})
}

// waits is told why the job waits for a slot.
func (j *job) waits(w scheduler.Waiting) error {
	j.waited = true
	if last := j.lastFailure(); last != nil && !last.patient && !j.hasOther(last.builder, false) {
		return errNoOther
	}
	j.now.waits(w.String())
	if err := j.tellSetback(); err != nil {
		return err
	}
	return j.say(w.String())
}

// relay passes on what a builder tells. The time that followers need for it does not
// count as the builder's silence.
func (j *job) relay(m daemon.Message) error {
	if j.now.ends(m) {
		j.enter(PhaseAnswering)
	}
	if err := j.limiter.heard(m); err != nil {
		return err
	}
	defer j.limiter.passedOn()
	return j.journal.Append(j.ctx, m)
}

// enter begins a phase.
func (j *job) enter(phase Phase) {
	if !j.now.enter(phase) {
		return
	}
	j.log.Debug("Build enters a phase", "phase", phase, "builder", j.now.at())
	if phase != PhaseReturning {
		j.returned()
	}
	if phase == PhaseBuilding {
		j.limiter.begin()
		if !j.waited && len(j.setbacks) == 0 {
			j.server.opts.Recorder.Dispatched(time.Since(j.began))
		}
		return
	}
	j.limiter.end()
	if phase == PhaseAnswering {
		// The daemon takes its time for large outputs, or hangs: no limit is right for
		// both, but the user should know.
		j.returning = j.supplier.doing(j.now.at(), "returns outputs")
	}
}

// returned ends the reminder that the builder is about to answer.
func (j *job) returned() {
	if j.returning != nil {
		j.returning()
	}
}

// status describes the job. The lock of jobs is held.
func (j *job) status() BuildStatus {
	status := BuildStatus{
		Derivation: j.request.DrvPath, Name: derivationName(j.request.DrvPath),
		System: j.need.Class.System, Features: j.need.Class.Mandatory,
		Since: j.began, Clients: j.followers,
	}
	j.now.describe(&status)
	return status
}

// derivationName is the part of a derivation's path that people know.
func derivationName(path string) string {
	p, err := storepath.Parse(storeDir, path)
	if err != nil {
		return path
	}
	return strings.TrimSuffix(p.Name(), ".drv")
}

// enter notes that a phase begins, and reports false if it goes on.
func (p *progress) enter(phase Phase) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == phase {
		return false
	}
	p.phase, p.since = phase, time.Now()
	if phase == PhaseQueued {
		p.builder = ""
	}
	p.waiting, p.activity = "", 0
	return true
}

// is returns the phase.
func (p *progress) is() Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.phase
}

// at returns the builder that has the build, or had it last.
func (p *progress) at() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.builder == "" && len(p.lost) > 0 {
		return p.lost[len(p.lost)-1]
	}
	return p.builder
}

func (p *progress) placed(builder string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.builder, p.waiting = builder, ""
}

func (p *progress) waits(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = why
}

func (p *progress) failed(builder string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = append(p.lost, builder)
}

// ends reports whether m says that the build itself is over: what follows is the
// result, and the builder's answers about the outputs.
func (p *progress) ends(m daemon.Message) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase != PhaseBuilding {
		return false
	}
	switch m := m.(type) {
	case daemon.StartActivity:
		if m.Type == daemon.ActivityBuild {
			p.activity = m.ID
		}
	case daemon.StopActivity:
		return p.activity != 0 && m.ID == p.activity
	}
	return false
}

func (p *progress) describe(status *BuildStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	status.Phase, status.PhaseSince = string(p.phase), p.since
	status.Builder, status.Waiting, status.Lost = p.builder, p.waiting, slices.Clone(p.lost)
}
