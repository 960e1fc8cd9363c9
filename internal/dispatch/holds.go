// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"sync"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// errReleased answers questions that come after the end of their build.
var errReleased = errors.New("the build has ended")

// holds keep the inputs of one build on builders until it is over: what the garbage
// collectors leave alone can still be had when one of the builders is lost. It is
// safe for concurrent use.
type holds struct {
	builders Builders

	mu sync.Mutex
	// on has a hold for each builder that was asked, asked the paths that it has
	// answered for.
	on       map[string]Hold
	asked    map[string]map[string]bool
	released bool
}

func newHolds(b Builders) *holds {
	return &holds{builders: b, on: map[string]Hold{}, asked: map[string]map[string]bool{}}
}

// ask asks a builder for paths and holds those that it has.
func (h *holds) ask(ctx context.Context, id string, paths []string) error {
	hold, err := h.get(id)
	if err != nil {
		return err
	}
	if err := hold.Add(ctx, paths); err != nil {
		var lost *fleet.LostError
		if errors.As(err, &lost) {
			// It may come back as another machine: then this hold never recovers.
			h.drop(id, hold)
		}
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.on[id] != hold {
		return nil
	}
	for _, path := range paths {
		h.asked[id][path] = true
	}
	return nil
}

// get returns the hold on a builder, a new one if there is none.
func (h *holds) get(id string) (Hold, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released {
		return nil, errReleased
	}
	if hold := h.on[id]; hold != nil {
		return hold, nil
	}
	// Without paths this asks nothing, so nobody is kept waiting.
	hold, err := h.builders.Hold(context.Background(), id, nil)
	if err != nil {
		return nil, err
	}
	h.on[id], h.asked[id] = hold, map[string]bool{}
	return hold, nil
}

func (h *holds) drop(id string, hold Hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.on[id] == hold {
		delete(h.on, id)
		delete(h.asked, id)
	}
	hold.Release()
}

// doubt forgets what a builder has answered, because it was not so.
func (h *holds) doubt(id string) {
	h.builders.Doubt(id)
	h.mu.Lock()
	hold := h.on[id]
	h.mu.Unlock()
	if hold != nil {
		h.drop(id, hold)
	}
}

// has reports whether a builder keeps path for the build.
func (h *holds) has(id, path string) bool { return h.keptOn(id)(path) }

// keptOn returns a function that reports whether a builder keeps a path for the build.
func (h *holds) keptOn(id string) func(path string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if hold := h.on[id]; hold != nil {
		return hold.Has
	}
	return func(string) bool { return false }
}

// unasked returns those of paths that a builder has neither answered for nor has.
func (h *holds) unasked(id string, paths []string) []string {
	h.mu.Lock()
	hold, asked := h.on[id], h.asked[id]
	var rest []string
	for _, path := range paths {
		if !asked[path] {
			rest = append(rest, path)
		}
	}
	h.mu.Unlock()
	if hold == nil {
		return rest
	}
	return without(rest, hold.Has)
}

// holders returns those of ids that keep path for the build.
func (h *holds) holders(ids []string, path string) []string {
	var out []string
	for _, id := range ids {
		if h.has(id, path) {
			out = append(out, id)
		}
	}
	return out
}

// infos returns what a builder knows of paths that it keeps for the build.
func (h *holds) infos(ctx context.Context, id string, paths []string) (map[string]daemon.PathInfo, error) {
	hold, err := h.get(id)
	if err != nil {
		return nil, err
	}
	return hold.Infos(ctx, paths)
}

// release ends all holds. Questions under way must have ended.
func (h *holds) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.released = true
	for id, hold := range h.on {
		hold.Release()
		delete(h.on, id)
	}
}

// without returns those of paths for which drop does not hold.
func without(paths []string, drop func(string) bool) []string {
	var out []string
	for _, path := range paths {
		if !drop(path) {
			out = append(out, path)
		}
	}
	return out
}
