// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

const (
	// maxAsked bounds the builders that are asked what they have.
	maxAsked = 8
	// tardyFor is how long a builder is not asked after it has not answered.
	tardyFor = time.Minute
)

// queryValidPaths answers operation 31: a path counts as there if it is in the
// spool, or on so many builders that losing one does not lose the path, or, with
// substitution allowed, if a builder can fetch it. What the client hears to be
// missing it uploads.
func (s *session) queryValidPaths(r *daemon.QueryValidPaths) error {
	ctx, stop := s.daemon.WatchHangup(s.ctx)
	defer stop()
	supplier := s.supplier
	supplier.substitute = supplier.substitute || r.Substitute
	there := map[string]bool{}
	var rest []string
	paths := distinct(r.Paths)
	for _, path := range paths {
		if supplier.inputs.add(path) {
			there[path] = true
		} else {
			rest = append(rest, path)
		}
	}
	if len(rest) > 0 {
		supplier.locate(ctx, rest, there)
	}
	if r.Substitute {
		rest = slices.DeleteFunc(rest, func(path string) bool { return there[path] })
		if len(rest) > 0 {
			supplier.locateSubstitutes(ctx, rest, there)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for path := range there {
		supplier.inputs.present[path] = true
	}
	return s.daemon.ReplyPaths(slices.DeleteFunc(paths, func(path string) bool { return !there[path] }))
}

// distinct returns paths without repetitions: a set, says the protocol, but nothing
// keeps a client to that.
func distinct(paths []string) []string {
	seen := make(map[string]bool, len(paths))
	var out []string
	for _, path := range paths {
		if !seen[path] {
			seen[path] = true
			out = append(out, path)
		}
	}
	return out
}

// locate adds to there those of paths that two builders of the class have; one,
// where the class has only one builder.
func (s *supplier) locate(ctx context.Context, paths []string, there map[string]bool) {
	usable, all := s.candidates()
	need := min(2, max(all, 1))
	if len(usable) < need {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.server.limits.Locate)
	defer cancel()
	holders := s.server.holders(ctx, s.server.tardy.prompt(usable, maxAsked), paths, need)
	for _, path := range paths {
		if len(holders[path]) >= need {
			there[path] = true
		}
	}
}

// candidates returns the usable builders of the supplier's class, and how many
// builders the class has.
func (s *supplier) candidates() (usable []string, all int) {
	now := time.Now()
	for _, b := range s.server.opts.Builders.Builders() {
		if !b.Serves(s.class) {
			continue
		}
		all++
		if b.Usable(now) {
			usable = append(usable, b.ID)
		}
	}
	return usable, all
}

// locateSubstitutes adds to there those of paths that a builder of the class can
// fetch from its substituters.
func (s *supplier) locateSubstitutes(ctx context.Context, paths []string, there map[string]bool) {
	usable, _ := s.candidates()
	ctx, cancel := context.WithTimeout(ctx, s.server.limits.Substitutes)
	defer cancel()
	found := s.server.askEach(ctx, s.server.tardy.prompt(usable, maxAsked), paths, 1, func(ctx context.Context, b Builder) ([]string, error) {
		return b.QuerySubstitutablePaths(ctx, paths)
	})
	for path := range found {
		there[path] = true
	}
}

// sources returns the builders from which an input can be fetched for another:
// those that can be reached, also where they take no new builds.
func (s *supplier) sources(target string) []string {
	var ids []string
	for _, b := range s.server.opts.Builders.Builders() {
		if b.ID != target && b.Down == "" && b.Serves(s.class) {
			ids = append(ids, b.ID)
		}
	}
	return ids
}

// holders asks builders which of paths they have, without substitution. It stops
// when every path has enough holders, or when ctx ends.
func (s *Server) holders(ctx context.Context, ids, paths []string, enough int) map[string][]string {
	return s.askEach(ctx, ids, paths, enough, func(ctx context.Context, b Builder) ([]string, error) {
		return b.QueryValidPaths(ctx, paths, false, nil)
	})
}

// askEach puts a question about paths to builders at the same time, and returns
// which of them named which path. It ends early when each path was named often
// enough. Who is late or fails has named none.
func (s *Server) askEach(ctx context.Context, ids, paths []string, enough int, ask func(context.Context, Builder) ([]string, error)) map[string][]string {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	named := make(map[string][]string, len(paths))
	asked := make(map[string]bool, len(paths))
	for _, path := range paths {
		asked[path] = true
	}
	lacking := len(paths)
	for _, id := range ids {
		wg.Go(func() {
			found, err := s.askOne(ctx, id, ask)
			if errors.Is(err, context.DeadlineExceeded) {
				s.tardy.note(id)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, path := range distinct(found) {
				if !asked[path] {
					continue
				}
				named[path] = append(named[path], id)
				if len(named[path]) == enough {
					lacking--
				}
			}
			if lacking == 0 {
				cancel(nil)
			}
		})
	}
	wg.Wait()
	return named
}

func (s *Server) askOne(ctx context.Context, id string, ask func(context.Context, Builder) ([]string, error)) ([]string, error) {
	b, err := s.opts.Builders.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	found, err := ask(ctx, b)
	if err != nil || ctx.Err() != nil {
		// The end of ctx closes the session even where the answer was in time.
		b.Close()
		return found, err
	}
	b.Keep()
	return found, nil
}

// tardiness remembers which builders have not answered in time, so that a slow
// one costs its delay once and not with every build.
type tardiness struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (t *tardiness) note(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.until == nil {
		t.until = map[string]time.Time{}
	}
	t.until[id] = time.Now().Add(tardyFor)
}

// prompt returns at most limit of ids, without those that were late recently.
func (t *tardiness) prompt(ids []string, limit int) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	var out []string
	for _, id := range ids {
		if until, late := t.until[id]; late && now.Before(until) {
			continue
		}
		delete(t.until, id)
		if len(out) < limit {
			out = append(out, id)
		}
	}
	return out
}

// serves reports whether a builder, healthy or not, serves the class.
func (s *Server) serves(id string, class scheduler.Class) bool {
	for _, b := range s.opts.Builders.Builders() {
		if b.ID == id {
			return b.Serves(class)
		}
	}
	return false
}
