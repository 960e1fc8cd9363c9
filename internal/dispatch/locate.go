// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"slices"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// maxAsked bounds the builders that are asked what they have.
const maxAsked = 8

// queryValidPaths answers operation 31: a path counts as there if it is in the
// spool, or on so many builders that losing one does not lose the path, or, with
// substitution allowed, if a builder can fetch it. What the client hears to be
// missing it uploads.
func (s *session) queryValidPaths(r *daemon.QueryValidPaths) error {
	ctx, stop := s.daemon.WatchHangup(s.ctx)
	defer stop()
	paths := distinct(r.Paths)
	if err := s.supplier.inputs.admit(paths...); err != nil {
		return err
	}
	s.supplier.locate(ctx, paths, r.Substitute)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	present := s.supplier.inputs.present
	return s.daemon.ReplyPaths(without(paths, func(path string) bool { return !present[path] }))
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

// locate finds out which of paths are there, makes them inputs and has them kept
// where they are until the build is over. It waits only for paths that are not in
// the spool. With a cancelled ctx it returns early.
func (s *supplier) locate(ctx context.Context, paths []string, substitute bool) {
	s.substitute = s.substitute || substitute
	rest := without(paths, s.inputs.add)
	if len(rest) > 0 {
		s.locateOnBuilders(ctx, rest)
		rest = without(rest, func(path string) bool { return s.inputs.present[path] })
	}
	if substitute && len(rest) > 0 {
		s.locateSubstitutes(ctx, rest)
	}
}

// locateOnBuilders marks those of paths as present that two builders of the class
// keep; one, where the class has only one builder. Builders that answer later, or
// after enough have, are still good to know for the choice of a builder.
func (s *supplier) locateOnBuilders(ctx context.Context, paths []string) {
	usable, all := s.candidates()
	need := min(2, max(all, 1))
	asked := s.server.tardy.prompt(s.byKnowledge(usable, paths), maxAsked)
	if len(asked) < need {
		return
	}
	answers := make(chan string, len(asked))
	for _, id := range asked {
		s.inBackground(func(ctx context.Context) {
			if err := s.holds.ask(ctx, id, paths); err != nil {
				s.server.log.Debug("Builder was not asked for inputs", "builder", id, "error", err)
			}
			answers <- id
		})
	}
	limit := time.NewTimer(s.server.limits.Locate)
	defer limit.Stop()
	late := slices.Clone(asked)
	for len(late) > 0 && !s.kept(asked, paths, need) {
		select {
		case id := <-answers:
			late = without(late, func(other string) bool { return other == id })
			continue
		case <-limit.C:
			for _, id := range late {
				s.server.tardy.note(id)
			}
		case <-ctx.Done():
		}
		break
	}
	for _, path := range paths {
		if len(s.holds.holders(asked, path)) >= need {
			s.inputs.present[path] = true
		}
	}
}

// kept reports whether each of paths is kept by enough builders.
func (s *supplier) kept(ids, paths []string, enough int) bool {
	return !slices.ContainsFunc(paths, func(path string) bool { return len(s.holds.holders(ids, path)) < enough })
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

// byKnowledge sorts builders by how many of paths they are known to have, as far as
// it matters who is asked.
func (s *supplier) byKnowledge(ids, paths []string) []string {
	if len(ids) <= maxAsked {
		return ids
	}
	known := make(map[string]int, len(ids))
	for _, id := range ids {
		has := s.server.opts.Builders.Known(id)
		for _, path := range paths {
			if has(path) {
				known[id]++
			}
		}
	}
	slices.SortStableFunc(ids, func(a, b string) int { return known[b] - known[a] })
	return ids
}

// locateSubstitutes marks those of paths as present that a builder of the class can
// fetch from its substituters.
func (s *supplier) locateSubstitutes(ctx context.Context, paths []string) {
	usable, _ := s.candidates()
	ctx, cancel := context.WithTimeout(ctx, s.server.limits.Substitutes)
	defer cancel()
	for path := range s.server.whoSubstitutes(ctx, s.server.tardy.prompt(usable, maxAsked), paths) {
		s.inputs.present[path] = true
	}
}

// sources returns the builders from which an input can be fetched for another:
// those that can be reached, also where they take no new builds. It tells as well
// which builders cannot be reached at present.
func (s *supplier) sources(target string) (ids, down []string) {
	for _, b := range s.server.opts.Builders.Builders() {
		switch {
		case b.ID == target || !b.Serves(s.class):
		case b.Down == "":
			ids = append(ids, b.ID)
		default:
			down = append(down, b.ID)
		}
	}
	return ids, down
}
