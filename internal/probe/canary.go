// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"slices"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Canaries are real builds, one for each system of an endpoint that asks for them.
// They happen within a probe, but in few of them: the first one, the next one after a
// change of systems or of Nix, or after a failure of another step, and else once per
// canaryInterval. One that does not pass is repeated sooner, since it takes systems
// out of use.
const (
	// canaryInterval is the time between two canaries, varied as probes are.
	canaryInterval = time.Hour
	// canaryRetry is the least time between two canaries whatever happens, and the
	// first wait after one that did not pass; each further one doubles the wait, up
	// to maxCanaryRetry.
	canaryRetry    = 30 * time.Second
	maxCanaryRetry = 5 * time.Minute
	// canaryPatience bounds the builds for all systems of a canary together.
	canaryPatience = time.Minute
	// maxCanarySystems is for how many systems a canary builds where none is
	// declared; builders list their own one first.
	maxCanarySystems = 8
)

// canaries is what is remembered of those of an endpoint.
type canaries struct {
	verdicts   []canaryVerdict
	nixVersion string
	ran, due   time.Time
	setbacks   int // in a row
	// doubt: a probe has failed since.
	doubt bool
}

// restoredCanaries is what can be told from a kept snapshot. Canaries of all endpoints
// that were well are spread, as the process starts with all of them.
func restoredCanaries(t *Target, kept *Snapshot, now time.Time, random float64) canaries {
	systems, facts := canarySystems(t, kept.Result.Facts.Systems), &kept.Result.Facts
	if !t.Canary || kept.State != StateHealthy || len(facts.Refuted) > 0 || len(systems) == 0 ||
		kept.Result.Outcome(StepSystemsVerified).Status != StatusTrue {
		return canaries{}
	}
	c := canaries{nixVersion: facts.NixVersion, due: now.Add(time.Duration(random * float64(canaryInterval)))}
	for _, system := range systems {
		c.verdicts = append(c.verdicts, canaryVerdict{system: system, status: StatusTrue})
	}
	return c
}

// canarySystems lists what to build for.
func canarySystems(t *Target, offered []string) []string {
	if len(t.Systems) > 0 {
		return t.Systems
	}
	return offered[:min(len(offered), maxCanarySystems)]
}

// isDue tells whether it is time for another canary.
func (c *canaries) isDue(systems []string, nixVersion string, now time.Time) bool {
	if !c.ran.IsZero() && now.Sub(c.ran) < canaryRetry && c.covers(systems) {
		return false
	}
	return c.doubt || c.nixVersion != nixVersion || !c.covers(systems) || !now.Before(c.due)
}

// covers tells whether there was a canary for each system.
func (c *canaries) covers(systems []string) bool {
	return !slices.ContainsFunc(systems, func(system string) bool {
		return !slices.ContainsFunc(c.verdicts, func(v canaryVerdict) bool { return v.system == system })
	})
}

// verdict is the last one about a system.
func (c *canaries) verdict(system string) canaryVerdict {
	for _, verdict := range c.verdicts {
		if verdict.system == system {
			return verdict
		}
	}
	return inconclusive(system, "it has not been tried yet")
}

// update takes in the verdicts of a canary. One that shows nothing does not clear a
// system that was refuted before.
func (c *canaries) update(verdicts []canaryVerdict, nixVersion string, now time.Time, random float64) {
	passed := true
	for i, verdict := range verdicts {
		if earlier := c.verdict(verdict.system); verdict.status == StatusUnknown && earlier.status == StatusFalse {
			verdicts[i] = earlier
		}
		passed = passed && verdicts[i].status == StatusTrue
	}
	c.verdicts, c.nixVersion, c.ran, c.doubt = verdicts, nixVersion, now, false
	if passed {
		c.setbacks, c.due = 0, now.Add(vary(canaryInterval, random))
		return
	}
	c.due = now.Add(double(canaryRetry, c.setbacks, maxCanaryRetry))
	c.setbacks++
}

// canary returns what is known of each system by building for it: now if it is time
// for that, else before. It is empty where nothing is to be built.
func (c *checker) canary(ctx context.Context, r *report, known *knowledge, conn *sshconn.Conn) []canaryVerdict {
	t := r.target
	if !t.Canary {
		known.canaries = canaries{}
		return nil
	}
	systems := canarySystems(t, r.facts.Systems)
	now := time.Now()
	if known.canaries.isDue(systems, r.facts.NixVersion, now) {
		if leave, ok := c.builds.enter(t.Address()); ok {
			verdicts := buildCanaries(ctx, t, conn, systems)
			leave()
			known.canaries.update(verdicts, r.facts.NixVersion, now, c.random())
		}
	}
	verdicts := make([]canaryVerdict, len(systems))
	for i, system := range systems {
		verdicts[i] = known.canaries.verdict(system)
	}
	return verdicts
}

// buildCanaries builds for one system after the other.
func buildCanaries(ctx context.Context, t *Target, conn *sshconn.Conn, systems []string) []canaryVerdict {
	ctx, cancel := context.WithTimeout(ctx, canaryPatience)
	defer cancel()
	verdicts := make([]canaryVerdict, len(systems))
	for i, system := range systems {
		verdicts[i] = inconclusive(system, "the builds for other systems took too long")
		if ctx.Err() == nil {
			verdicts[i] = canaryBuild(ctx, t, conn, system)
		}
	}
	return verdicts
}

// judged reports what canaries found, unless there is nothing to say against any
// system. Refuted systems become facts.
func judged(r *report, verdicts []canaryVerdict) bool {
	var refuted, unknown []canaryVerdict
	r.facts.Refuted = nil
	for _, verdict := range verdicts {
		switch verdict.status {
		case StatusFalse:
			refuted = append(refuted, verdict)
			r.facts.Refuted = append(r.facts.Refuted, verdict.system)
		case StatusUnknown:
			unknown = append(unknown, verdict)
		}
	}
	switch {
	case len(refuted) > 0 && len(refuted) == len(verdicts):
		r.fail(StepSystemsVerified, ReasonCanaryFailed, messageCanary(r.target, refuted))
	case len(refuted) > 0:
		r.fail(StepSystemsVerified, ReasonSystemsRefuted, messageCanary(r.target, refuted))
	case len(unknown) > 0:
		r.unknown(StepSystemsVerified, ReasonCanaryInconclusive, messageCanary(r.target, unknown))
	default:
		return false
	}
	return true
}

// places are the machines where a canary is under way: no machine gets two at once,
// however many endpoints lead to it.
type places struct {
	mu    sync.Mutex
	taken map[string]bool
}

// enter takes a machine unless it is taken. leave gives it back.
func (p *places) enter(address string) (leave func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[address] {
		return nil, false
	}
	if p.taken == nil {
		p.taken = map[string]bool{}
	}
	p.taken[address] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.taken, address)
	}, true
}
