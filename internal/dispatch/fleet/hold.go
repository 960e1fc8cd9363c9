// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"maps"
	"slices"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// errHoldLost is why a hold that has lost its session cannot be asked.
var errHoldLost = errors.New("the session that held the paths has ended")

// Hold keeps store paths on a builder from its garbage collector, and knows which
// of them are there. Paths that are not there are kept as well from the moment on
// when something adds them, but only Add looks for them again.
//
// It is safe for concurrent use.
type Hold struct {
	host *host

	// The rest is guarded by the lock of the host's keeping.

	// paths are those that are valid, with who keeps them.
	paths map[string]*keeper
	// keepers are all that the hold rests on.
	keepers map[*keeper]struct{}
	// released is set for good: nothing would end what a hold rests on after that.
	released bool
}

// Hold asks which of paths the builder has, and keeps them there until the hold is
// released, or lost. What was said recently is not asked again, and questions at
// the same time go together. The error is a *LostError, or the cause of ctx's end.
func (f *Fleet) Hold(ctx context.Context, id string, paths []string) (*Hold, error) {
	h := f.host(id)
	if h == nil {
		return nil, &LostError{Builder: id, Err: errGone}
	}
	hold := &Hold{host: h, paths: map[string]*keeper{}, keepers: map[*keeper]struct{}{}}
	if err := hold.Add(ctx, paths); err != nil {
		hold.Release()
		return nil, err
	}
	return hold, nil
}

// Known returns a function that tells what the builder is known to hold, without
// asking it: what it has said in the last minutes, and what was built there. It is
// for choosing between builders; only a Hold makes sure.
func (f *Fleet) Known(id string) func(path string) bool {
	h := f.host(id)
	if h == nil {
		return func(string) bool { return false }
	}
	return h.keep.known
}

// Believe notes that paths were just built on the builder or sent to it. Known
// counts on them at once; in the background they are asked for and held, for as long
// as a session for that lasts.
func (f *Fleet) Believe(id string, paths []string) {
	if h := f.host(id); h != nil && len(paths) > 0 {
		h.believe(paths)
	}
}

// Doubt forgets what the builder has said, after something was not there that
// should have been. Holds go on; new ones ask anew.
func (f *Fleet) Doubt(id string) {
	if h := f.host(id); h != nil {
		h.doubt()
	}
}

func (f *Fleet) host(id string) *host {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hosts[id]
}

// Has reports whether the path is on the builder and stays there until Release.
func (hd *Hold) Has(path string) bool {
	hd.host.keep.mu.RLock()
	defer hd.host.keep.mu.RUnlock()
	k := hd.paths[path]
	return k != nil && k.err == nil
}

// Add asks for more paths, and again for those that the hold has not. After Release it
// does nothing.
func (hd *Hold) Add(ctx context.Context, paths []string) error {
	for again := false; ; again = true {
		err := hd.add(ctx, paths)
		var lost *LostError
		if err == nil || again || ctx.Err() != nil || !errors.As(err, &lost) || lost.Silent() {
			return err
		}
		// A session without work may have ended for reasons of its own.
	}
}

func (hd *Hold) add(ctx context.Context, paths []string) error {
	h := hd.host
	h.mu.Lock()
	err := h.unusable()
	h.mu.Unlock()
	if err != nil {
		return err
	}
	var waitFor []*question
	h.keep.mu.Lock()
	if hd.released {
		h.keep.mu.Unlock()
		return nil
	}
	var k *keeper
	for _, path := range paths {
		if kept := hd.paths[path]; kept != nil && kept.err == nil {
			continue
		}
		if !askable(path) {
			continue
		}
		if k == nil {
			k = h.keeper()
			hd.restOn(k)
		}
		if k.valid[path] {
			hd.paths[path] = k
		} else if q := k.ask(path); !slices.Contains(waitFor, q) {
			waitFor = append(waitFor, q)
		}
	}
	h.keep.mu.Unlock()
	for _, q := range waitFor {
		select {
		case <-q.done:
			if q.err != nil {
				return q.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		h.keep.mu.Lock()
		for _, path := range paths {
			if q.valid[path] && !hd.released {
				hd.paths[path] = k
			}
		}
		h.keep.mu.Unlock()
	}
	return nil
}

// restOn makes the keeper stay for the hold. The lock is held.
func (hd *Hold) restOn(k *keeper) {
	hd.keepers[k] = struct{}{}
	k.holds[hd] = struct{}{}
}

// Infos asks what the builder knows about paths that the hold has; others are left
// out.
func (hd *Hold) Infos(ctx context.Context, paths []string) (map[string]daemon.PathInfo, error) {
	by := map[*keeper][]string{}
	hd.host.keep.mu.RLock()
	for _, path := range paths {
		if k := hd.paths[path]; k != nil {
			by[k] = append(by[k], path)
		}
	}
	hd.host.keep.mu.RUnlock()
	infos := make(map[string]daemon.PathInfo, len(paths))
	for k, paths := range by {
		found, err := k.infos(ctx, paths)
		if err != nil {
			return nil, err
		}
		maps.Copy(infos, found)
	}
	return infos, nil
}

// Release ends the hold. Further calls do nothing.
func (hd *Hold) Release() {
	keep := &hd.host.keep
	keep.mu.Lock()
	defer keep.mu.Unlock()
	for k := range hd.keepers {
		delete(k.holds, hd)
		keep.settle(k)
	}
	clear(hd.keepers)
	clear(hd.paths)
	hd.released = true
}
