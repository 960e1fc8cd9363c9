// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/statuspage"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// phases in which builders are killed, in turn.
var phases = []dispatch.Phase{
	dispatch.PhaseQueued, dispatch.PhaseUploading, dispatch.PhaseBuilding, dispatch.PhaseAnswering, dispatch.PhaseReturning,
}

const (
	// manyKills is from how many kills on a run is for the figures: its last
	// round cuts builders off instead of killing them, and times count.
	manyKills = 25
	// rebuildGoal is how soon after a closed connection a build with small inputs
	// must have started again.
	rebuildGoal = time.Second
	// smallInputs is what that goal is for, in bytes.
	smallInputs = 1 << 20
	// maxMissed is how often a kill is begun again because its phase was too short.
	maxMissed = 3
	// phasePatience bounds the wait for a build to reach its phase.
	phasePatience = 30 * time.Second
)

// errMissed means that a build was through its phase before its builder was killed.
var errMissed = errors.New("the phase was missed")

// TestKills kills one of three builders in a known phase of a known build, again
// and again.
func TestKills(t *testing.T) {
	requireLab(t)
	w := newWorld(t, worldOptions{
		builders: nixlab.Versions(), clients: nixlab.Versions(), slots: 1,
		// A builder that was cut off is to be used again soon.
		flags: []string{"--orphan-grace=3s"},
	})
	w.settle(t, usage{})
	figures := newReport(w)
	for i := range *killsFlag {
		k := kill{number: i, Phase: string(phases[i%len(phases)]), How: "killed"}
		if *killsFlag >= manyKills && i >= *killsFlag-len(phases) {
			k.How = "cut off"
		}
		err := k.run(t.Context(), w)
		for again := 1; errors.Is(err, errMissed) && again <= maxMissed; again++ {
			w.events.note("kill %d: %v", i, err)
			figures.add(k)
			k = kill{number: i + again*1000, Phase: k.Phase, How: k.How}
			err = k.run(t.Context(), w)
		}
		if err != nil {
			t.Errorf("kill %d (%s): %v", i, k.Phase, err)
		}
		figures.add(k)
		if t.Failed() && *killsFlag < manyKills {
			break
		}
	}
	figures.judge(t)
	w.settle(t, usage{})
	w.end(t)
}

// kill is one builder killed, and what became of the builds.
type kill struct {
	number int
	// Phase is what the dispatcher's status said right before, Logged what its
	// log said of the loss; empty for a build that was not on the builder.
	Phase  string `json:"phase"`
	Logged string `json:"logged,omitempty"`
	// How is "killed" or "cut off"; Builder and Client have Nix versions.
	How     string `json:"how"`
	Builder string `json:"builder"`
	Client  string `json:"client"`
	// InputBytes is the size of the build's inputs.
	InputBytes int `json:"input_bytes"`
	// Rebuilt is how many seconds later the build was started elsewhere; nil for
	// a build that was not on the builder.
	Rebuilt *float64 `json:"rebuild_seconds,omitempty"`
	// Builds is how many were under way, Lost how many of them went wrong.
	Builds int `json:"builds"`
	Lost   int `json:"lost"`
}

// run has a build reach its phase, kills its builder, and sees how all builds end.
func (k *kill) run(ctx context.Context, w *world) (err error) {
	if err := w.allUp(ctx); err != nil {
		return err
	}
	s := newScene(dispatch.Phase(k.Phase), k.number, w)
	k.Client, k.InputBytes, k.Builds = s.client.Nix(), s.target.source, 1+len(s.blockers)
	ctx, cancel := context.WithTimeout(ctx, buildPatience)
	defer cancel()
	if err := s.set(ctx); err != nil {
		return err
	}
	victim, err := s.reach(ctx)
	if err != nil {
		return errors.Join(err, s.clear(ctx), s.finish(k))
	}
	k.Builder = victim.Nix()
	at := time.Now()
	w.events.note("kill %d: %s in phase %s", k.number, s.target.name, k.Phase)
	if k.How == "killed" {
		victim.kill("")
	} else if err := victim.cut(ctx); err != nil {
		return err
	}
	err = s.clear(ctx)
	if k.Rebuilt = s.awaitRebuild(victim, at); k.Rebuilt == nil {
		err = errors.Join(err, s.finish(k))
	}
	if k.How == "killed" {
		err = errors.Join(err, victim.revive(ctx))
	} else {
		err = errors.Join(err, victim.heal(ctx))
	}
	if k.Rebuilt != nil {
		err = errors.Join(err, s.finish(k))
	}
	for _, r := range w.dispatcher.log.since(at) {
		if r.Message == lostMessage && derivationName(r.Derivation) == s.target.name && k.Logged == "" {
			k.Logged = r.Phase
		}
	}
	return err
}

// allUp waits until the dispatcher uses every builder.
func (w *world) allUp(ctx context.Context) error {
	return eventually(ctx, patience, "all builders to be in use", func() error {
		status, err := w.dispatcher.state(ctx)
		if err != nil {
			return err
		}
		for _, b := range status.Builders {
			if b.State != statuspage.StateHealthy || b.Used > 0 {
				return fmt.Errorf("%s: %s, %s, %d slots in use", b.ID, b.State, b.Reason, b.Used)
			}
		}
		return nil
	})
}

// scene is a build that will be in a phase for a while, and what it takes for that.
type scene struct {
	w      *world
	phase  dispatch.Phase
	number int
	client *client
	target *node
	// blockers keep all slots busy.
	blockers []*node
	// to and from are the rates of the builders' links, in bytes per second, from
	// the beginning or once the build runs; 0 is none.
	to, from int

	builds []*running // of the blockers and the target
	// moves are the target's from phase to phase.
	moves <-chan record
	stop  func()
}

func newScene(phase dispatch.Phase, number int, w *world) *scene {
	s := &scene{
		w: w, phase: phase, number: number, client: w.clients[number/len(phases)%len(w.clients)],
		target: &node{
			name: fmt.Sprintf("kill%d-%s", number, strings.ToLower(string(phase))), seconds: 0.5, source: 40_000, tree: true,
		},
	}
	switch phase {
	case dispatch.PhaseQueued:
		for i := range w.builders {
			s.blockers = append(s.blockers, &node{name: fmt.Sprintf("kill%d-blocker%d", number, i), seconds: 2.5})
		}
	case dispatch.PhaseUploading:
		s.to, s.target.source = 300<<10, 900<<10
		if number/len(phases)%3 == 2 {
			s.to, s.target.source = 1<<20, 4<<20
		}
	case dispatch.PhaseBuilding:
		s.target.seconds = 1.5
	case dispatch.PhaseAnswering:
		// Hundreds of references make a path info that takes its time.
		s.from, s.target.mentions = 16<<10, 500
	case dispatch.PhaseReturning:
		s.from, s.target.padding = 1<<20, 3<<20
	}
	return s
}

// set begins the builds, on slow links if need be.
func (s *scene) set(ctx context.Context) error {
	for _, b := range s.w.builders {
		if err := b.limit(ctx, s.to, 0); err != nil {
			return err
		}
	}
	for i, blocker := range s.blockers {
		if err := s.begin(ctx, s.w.clients[i%len(s.w.clients)], blocker); err != nil {
			return err
		}
	}
	if len(s.blockers) > 0 {
		err := eventually(ctx, phasePatience, "all slots to be busy", func() error {
			status, err := s.w.dispatcher.state(ctx)
			building := 0
			for _, b := range status.Running {
				if b.Phase == string(dispatch.PhaseBuilding) {
					building++
				}
			}
			if err == nil && building < len(s.blockers) {
				err = fmt.Errorf("%d builds run, %d wait", building, len(status.Waiting))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	s.moves, s.stop = s.w.dispatcher.log.phasesOf(s.target.name)
	return s.begin(ctx, s.client, s.target)
}

func (s *scene) begin(ctx context.Context, from *client, n *node) error {
	r, err := from.begin(ctx, graph{n})
	if err == nil {
		r.from, r.graph = from, graph{n}
		s.builds = append(s.builds, r)
	}
	return err
}

// reach waits until the target is in the scene's phase and returns the builder to
// kill: its own, or any while it waits for one.
func (s *scene) reach(ctx context.Context) (*builder, error) {
	late := time.After(phasePatience)
	seen := "none"
	if s.phase == dispatch.PhaseQueued {
		return s.w.builders[s.number/len(phases)%len(s.w.builders)], s.awaitQueued(ctx)
	}
	for {
		select {
		case r := <-s.moves:
			seen = r.Phase
			b := s.w.byID(r.Builder)
			switch {
			case r.Phase == string(s.phase):
				if s.stays() {
					return b, nil
				}
			case r.Phase == string(dispatch.PhaseBuilding) && s.from > 0:
				if err := b.limit(ctx, 0, s.from); err != nil {
					return nil, err
				}
			}
		case <-s.targetBuild().done:
			return nil, fmt.Errorf("%w: %s ended, last seen in phase %s", errMissed, s.target.name, seen)
		case <-late:
			return nil, fmt.Errorf("%s was not in phase %s within %v; last seen: %s", s.target.name, s.phase, phasePatience, seen)
		}
	}
}

// targetBuild is the target's nix-build.
func (s *scene) targetBuild() *running { return s.builds[len(s.builds)-1] }

// awaitQueued waits until the target waits for a slot.
func (s *scene) awaitQueued(ctx context.Context) error {
	return eventually(ctx, phasePatience, "the build to wait for a slot", func() error {
		status, err := s.w.dispatcher.state(ctx)
		for _, b := range status.Waiting {
			if derivationName(b.Derivation) == s.target.name {
				return err
			}
		}
		return errors.Join(err, errors.New("it does not"))
	})
}

// stays waits a moment, another one in every kill, and reports whether the target is
// in its phase still.
func (s *scene) stays() bool {
	time.Sleep(s.dwell())
	return len(s.moves) == 0
}

// dwell is how long a build is left in its phase: other kills, other moments.
func (s *scene) dwell() time.Duration {
	return time.Duration(s.number*7%10) * 12 * time.Millisecond
}

// clear makes all links fast again, for what is still under way there, too.
func (s *scene) clear(ctx context.Context) error {
	return sideBySide(len(s.w.builders), func(i int) error { return s.w.builders[i].limit(ctx, 0, 0) })
}

// awaitRebuild returns how many seconds after the kill the target was started on
// another builder; nil if it was on none, or has ended.
func (s *scene) awaitRebuild(gone *builder, at time.Time) *float64 {
	for s.phase != dispatch.PhaseQueued {
		select {
		case r := <-s.moves:
			if r.Phase == string(dispatch.PhaseBuilding) && r.Builder != gone.id() {
				seconds := r.Time.Sub(at).Seconds()
				return &seconds
			}
		case <-s.targetBuild().done:
			return nil
		}
	}
	return nil
}

// finish waits for the builds and counts those that went wrong.
func (s *scene) finish(k *kill) error {
	if s.stop != nil {
		defer s.stop()
	}
	var all []error
	for _, r := range s.builds {
		result, err := r.wait()
		if err == nil && result.Status != 0 {
			err = fmt.Errorf("status %d:\n%s", result.Status, result.text)
		}
		if err == nil {
			err = r.from.verify(r.graph)
		}
		if err != nil {
			k.Lost++
			all = append(all, fmt.Errorf("%s: %w", r.graph.root().name, err))
		}
	}
	return errors.Join(all...)
}
