// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Canaries are real builds, one for each system of an endpoint that asks for them, and
// some more for features (see canary_features.go). They happen within a probe, but in
// few of them: the first one, the next one after a change of systems, of features or of
// Nix, or after a failure of another step, and else once per canaryInterval. One that
// does not pass is repeated sooner, since it takes systems out of use.
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
	features   []featureVerdict
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
	if t.Canary && len(facts.Refuted)+len(facts.RefutedFeatures) > 0 {
		return refutedCanaries(t, &kept.Result)
	}
	if !t.Canary || kept.State != StateHealthy || len(systems) == 0 ||
		kept.Result.Outcome(StepSystemsVerified).Status != StatusTrue {
		return canaries{}
	}
	c := canaries{nixVersion: facts.NixVersion, due: now.Add(time.Duration(random * float64(canaryInterval)))}
	for _, system := range systems {
		c.verdicts = append(c.verdicts, canaryVerdict{system: system, status: StatusTrue})
	}
	for _, feature := range canaryFeatures(t, facts.Features) {
		c.features = append(c.features, featureVerdict{feature: feature, status: StatusTrue})
	}
	return c
}

// refutedCanaries is what is remembered where something was refuted: it stays so until
// a canary shows that it is over. One is due now.
func refutedCanaries(t *Target, kept *Result) canaries {
	said := kept.Outcome(StepSystemsVerified)
	if said.Status != StatusFalse {
		said.Message = messageRefutedBefore(t, slices.Concat(kept.Facts.Refuted, kept.Facts.RefutedFeatures))
	}
	var c canaries
	for _, system := range kept.Facts.Refuted {
		c.verdicts = append(c.verdicts, canaryVerdict{system: system, status: StatusFalse, said: said.Message})
	}
	for _, feature := range kept.Facts.RefutedFeatures {
		c.features = append(c.features, featureVerdict{feature: feature, status: StatusFalse, said: said.Message})
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
func (c *canaries) isDue(systems, features []string, nixVersion string, now time.Time) bool {
	covered := c.covers(systems) && c.coversFeatures(features)
	if !c.ran.IsZero() && now.Sub(c.ran) < canaryRetry && covered {
		return false
	}
	return c.doubt || c.nixVersion != nixVersion || !covered || !now.Before(c.due)
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

// update takes in the verdicts of a canary, of which those of features are in. One that
// shows nothing does not clear a system that was refuted before.
func (c *canaries) update(verdicts []canaryVerdict, nixVersion string, now time.Time, random float64) {
	passed := len(c.featuresWith(StatusFalse)) == 0
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
	systems, features := canarySystems(t, r.facts.Systems), canaryFeatures(t, r.facts.Features)
	now := time.Now()
	if known.canaries.isDue(systems, features, r.facts.NixVersion, now) {
		if leave, ok := c.builds.enter(t.Address()); ok {
			verdicts, required := buildCanaries(ctx, t, conn, systems, features)
			leave()
			known.canaries.updateFeatures(required)
			known.canaries.update(verdicts, r.facts.NixVersion, now, c.random())
		}
	}
	known.canaries.only(features)
	verdicts := make([]canaryVerdict, len(systems))
	for i, system := range systems {
		verdicts[i] = known.canaries.verdict(system)
	}
	return verdicts
}

// buildCanaries builds for one system after the other, and then with features for the
// first system that works.
func buildCanaries(ctx context.Context, t *Target, conn *sshconn.Conn, systems, features []string) ([]canaryVerdict, []featureVerdict) {
	ctx, cancel := context.WithTimeout(ctx, canaryPatience)
	defer cancel()
	verdicts := make([]canaryVerdict, len(systems))
	for i, system := range systems {
		verdicts[i] = inconclusive(system, "the builds for other systems took too long")
		if ctx.Err() == nil {
			verdicts[i] = canaryBuild(ctx, t, conn, system)
		}
	}
	for _, verdict := range verdicts {
		if verdict.status == StatusTrue {
			return verdicts, buildFeatures(ctx, t, conn, verdict.system, features)
		}
	}
	required := make([]featureVerdict, len(features))
	for i, feature := range features {
		required[i] = featureVerdict{feature: feature, status: StatusUnknown}
	}
	return verdicts, required
}

// judged reports what canaries found, unless there is nothing to say against any
// system or feature. What is refuted becomes facts.
func judged(r *report, verdicts []canaryVerdict, features *canaries) bool {
	var refuted, unknown []canaryVerdict
	r.facts.Refuted, r.facts.RefutedFeatures = nil, features.featuresWith(StatusFalse)
	lacking := ""
	if len(r.facts.RefutedFeatures) > 0 {
		i := slices.IndexFunc(features.features, func(v featureVerdict) bool { return v.status == StatusFalse })
		if lacking = features.features[i].said; lacking == "" {
			lacking = messageFeaturesRefuted(r.target, r.facts.RefutedFeatures, features.features[i].offers)
		}
	}
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
		message := messageCanary(r.target, refuted)
		if !strings.Contains(message, lacking) { // what was said before a restart is about both
			message += ". " + lacking
		}
		r.fail(StepSystemsVerified, ReasonSystemsRefuted, message)
	case lacking != "":
		r.fail(StepSystemsVerified, ReasonFeaturesRefuted, lacking)
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
