// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

const (
	// sourceTimeout bounds asking builders for an input that is needed.
	sourceTimeout = 30 * time.Second
	// returnTimeout is how long a build that has its slot waits for builders that
	// are down and may have an input which nobody else has.
	returnTimeout = 2 * time.Minute
	// returnPause is between two looks for such an input.
	returnPause = 2 * time.Second
)

// gather finds where paths can be had from. What is on other builders only is
// fetched into the spool first, or, where that has no room, passed through.
func (s *supplier) gather(ctx context.Context, paths []string, target string) ([]parcel, error) {
	var parcels []parcel
	var away []string
	for _, path := range paths {
		if pin := s.inputs.pin(path); pin != nil {
			parcels = append(parcels, fromSpool(pin))
		} else {
			away = append(away, path)
		}
	}
	if len(away) == 0 {
		return parcels, nil
	}
	h := hunt{supplier: s, target: target, failed: map[string]map[string]error{}}
	found, err := h.fetch(ctx, away)
	return append(parcels, found...), err
}

// hunt is the search for inputs that are on other builders than the one that needs
// them.
type hunt struct {
	*supplier
	target string
	// failed has, for each builder, the paths that it could not give, with why.
	failed map[string]map[string]error
	// until is when it ends to wait for builders that are down; zero before the
	// first wait.
	until time.Time
}

// fetch gets paths from whoever has them, one builder after another.
func (h *hunt) fetch(ctx context.Context, paths []string) ([]parcel, error) {
	var found []parcel
	for len(paths) > 0 {
		from, some, err := h.donor(ctx, paths)
		if err != nil {
			return nil, err
		}
		got, err := h.fetchFrom(ctx, from, some)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		found = append(found, got...)
		paths = without(paths, func(path string) bool {
			return slices.ContainsFunc(got, func(p parcel) bool { return p.info.Path == path })
		})
		if err != nil {
			h.log.Info("Builder did not give an input that it has", "builder", from, "path", some[len(got)], "error", err)
			h.fail(from, some[len(got)], err)
		}
	}
	return found, nil
}

// fail notes that a builder has not given a path.
func (h *hunt) fail(id, path string, why error) {
	if h.failed[id] == nil {
		h.failed[id] = map[string]error{}
	}
	h.failed[id][path] = why
}

// donor returns a builder and those of paths that it keeps for us: the first path in
// any case. It asks everybody where nobody is known to have that, and waits for
// builders that are down.
func (h *hunt) donor(ctx context.Context, paths []string) (id string, some []string, err error) {
	gives := func(id, path string) bool { return h.failed[id][path] == nil && h.holds.has(id, path) }
	asked := false
	for {
		ids, down := h.sources(h.target)
		for _, id := range ids {
			if gives(id, paths[0]) {
				return id, without(paths, func(path string) bool { return !gives(id, path) }), nil
			}
		}
		switch {
		case !asked:
			asked = true
			h.askAll(ctx, ids, paths)
		case len(down) == 0:
			return "", nil, h.notFound(paths[0])
		default:
			if err := h.wait(ctx, paths[0], down); err != nil {
				return "", nil, err
			}
			asked = false
		}
		if ctx.Err() != nil {
			return "", nil, context.Cause(ctx)
		}
	}
}

// askAll asks builders for paths that the build cannot do without. So it has more
// patience than a question for the sake of speed, and asks those that were late, too.
func (h *hunt) askAll(ctx context.Context, ids, paths []string) {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if err := h.holds.ask(ctx, id, paths); err != nil {
				h.server.log.Debug("Builder was not asked for inputs", "builder", id, "error", err)
			}
		})
	}
	wg.Wait()
}

// wait lets some time pass while builders that may have a path are down. The users
// see why.
func (h *hunt) wait(ctx context.Context, path string, down []string) error {
	now := time.Now()
	if h.until.IsZero() {
		h.until = now.Add(returnTimeout)
		err := h.say(fmt.Sprintf("input %s is on no builder that can be reached: waiting for %s to come back, %v at most",
			path, strings.Join(down, ", "), returnTimeout))
		if err != nil {
			return err
		}
	}
	if now.After(h.until) {
		return h.notFound(path)
	}
	select {
	case <-time.After(returnPause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// notFound is the error for an input that nobody gives.
func (h *hunt) notFound(path string) error {
	reasons := []error{fmt.Errorf("input %s is no longer in the spool nor on a builder that could be asked: start the build again", path)}
	for _, id := range slices.Sorted(maps.Keys(h.failed)) {
		if why := h.failed[id][path]; why != nil {
			reasons = append(reasons, fmt.Errorf("builder %s: %w", id, why))
		}
	}
	return errors.Join(reasons...)
}

// fetchFrom gets paths from a builder that keeps them. Along with an error it returns
// those that it has got before.
func (h *hunt) fetchFrom(ctx context.Context, id string, paths []string) (parcels []parcel, err error) {
	infos, err := h.holds.infos(ctx, id, paths)
	if err != nil {
		return nil, err
	}
	size := uint64(0)
	for _, info := range infos {
		size += info.NARSize
	}
	open := h.server.opts.Builders.Open
	if size > smallTransfer {
		open = h.server.opts.Builders.OpenBulk
	}
	source, err := open(ctx, id)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			source.Close()
			return
		}
		source.Reuse()
	}()
	for _, path := range paths {
		info, ok := infos[path]
		if !ok {
			return parcels, fmt.Errorf("it no longer has %s", path)
		}
		pin, err := h.intoSpool(&info, func(w io.Writer) error { return source.NARFromPath(ctx, path, w) })
		switch {
		case errors.Is(err, errUnspooled):
			parcels = append(parcels, h.passedThrough(ctx, info, id))
		case err != nil:
			return parcels, err
		default:
			h.inputs.put(pin)
			parcels = append(parcels, fromSpool(pin))
		}
	}
	return parcels, nil
}

// passedThrough is a parcel that is read from a builder while it is sent to another.
func (h *hunt) passedThrough(ctx context.Context, info daemon.PathInfo, id string) parcel {
	return parcel{info: info, open: func() (io.ReadCloser, error) {
		ctx, cancel := context.WithCancel(ctx)
		// Not one for transfers: who waits for such a session must not have one.
		source, err := h.server.opts.Builders.Open(ctx, id)
		if err != nil {
			cancel()
			return nil, err
		}
		r, w := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			err := source.NARFromPath(ctx, info.Path, w)
			source.Close()
			w.CloseWithError(err)
		}()
		return passage{PipeReader: r, stop: func() {
			cancel()
			r.Close()
			<-done
		}}, nil
	}}
}

// passage is the reader of a parcel that is passed through. Close joins its
// goroutine.
type passage struct {
	*io.PipeReader
	stop func()
}

// Close implements io.Closer.
func (p passage) Close() error {
	p.stop()
	return nil
}
