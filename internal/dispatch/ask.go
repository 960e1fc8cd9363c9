// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// tardyFor is how long a builder is not asked after it has not answered.
const tardyFor = time.Minute

// whoSubstitutes asks builders, all at the same time, which of paths they can fetch
// from their substituters. It ends early when each path was named. Who is late or
// fails has named none.
func (s *Server) whoSubstitutes(ctx context.Context, ids, paths []string) map[string]bool {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	named := make(map[string]bool, len(paths))
	asked := make(map[string]bool, len(paths))
	for _, path := range paths {
		asked[path] = true
	}
	for _, id := range ids {
		wg.Go(func() {
			found, err := s.substitutes(ctx, id, paths)
			if errors.Is(err, context.DeadlineExceeded) {
				s.tardy.note(id)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, path := range found {
				if asked[path] {
					named[path] = true
				}
			}
			if len(named) == len(asked) {
				cancel(nil)
			}
		})
	}
	wg.Wait()
	return named
}

func (s *Server) substitutes(ctx context.Context, id string, paths []string) ([]string, error) {
	b, err := s.opts.Builders.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	found, err := b.QuerySubstitutablePaths(ctx, paths)
	if err != nil || ctx.Err() != nil {
		// The end of ctx closes the session even where the answer was in time.
		b.Close()
		return found, err
	}
	b.Reuse()
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
