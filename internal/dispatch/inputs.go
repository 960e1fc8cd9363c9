// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"fmt"

	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// maxInputs bounds the store paths that a client can name on one connection. Closures of
// whole systems have some ten thousand.
const maxInputs = 100_000

// inputs are the store paths that a client has named or uploaded, with pins on
// those that are in the spool. It belongs to one session and is not safe for
// concurrent use.
type inputs struct {
	spool Spool
	// paths has every path once, in the order in which they were named.
	paths []string
	// pins has an entry for each of paths; nil where the path is not in the
	// spool.
	pins map[string]*spool.Pin
	// present has the paths that are in the spool or on a builder, or that a
	// builder can fetch; the client has been told so or has uploaded them.
	present map[string]bool
}

func newInputs(s Spool) *inputs {
	return &inputs{spool: s, pins: map[string]*spool.Pin{}, present: map[string]bool{}}
}

// add makes path an input and reports whether it is in the spool.
func (in *inputs) add(path string) bool {
	pin, known := in.pins[path]
	if !known {
		in.paths = append(in.paths, path)
	}
	if pin == nil {
		pin, _ = in.spool.Pin(path)
		in.pins[path] = pin
		in.present[path] = in.present[path] || pin != nil
	}
	return pin != nil
}

// admit fails if more paths would be too many.
func (in *inputs) admit(more ...string) error {
	n := len(in.paths)
	for _, path := range more {
		if _, known := in.pins[path]; !known {
			n++
		}
	}
	if n > maxInputs {
		return fmt.Errorf("the client has named more than %d store paths as inputs, which is the most that the dispatcher keeps for a connection", maxInputs)
	}
	return nil
}

// put makes the path of a pin an input. The pin is released with the others.
func (in *inputs) put(pin *spool.Pin) {
	path := pin.Info().Path
	old, known := in.pins[path]
	switch {
	case !known:
		in.paths = append(in.paths, path)
	case old != nil:
		old.Release()
	}
	in.pins[path] = pin
	in.present[path] = true
}

// available returns the present paths in the order in which they were named.
func (in *inputs) available() []string {
	var out []string
	for _, path := range in.paths {
		if in.present[path] {
			out = append(out, path)
		}
	}
	return out
}

// pin returns the pin of an input that is in the spool, or nil.
func (in *inputs) pin(path string) *spool.Pin {
	if in.add(path) {
		return in.pins[path]
	}
	return nil
}

func (in *inputs) release() {
	for _, pin := range in.pins {
		if pin != nil {
			pin.Release()
		}
	}
	in.paths, in.pins, in.present = nil, nil, nil
}

// inputHashes returns the NAR hashes of paths, as they are in the spool or on the
// builders that keep them. It fails with errUnknownHash if one is not known.
func (s *supplier) inputHashes(ctx context.Context, paths []string) (map[string]string, error) {
	hashes := make(map[string]string, len(paths))
	var away []string
	for _, path := range paths {
		if pin := s.inputs.pin(path); pin != nil {
			hashes[path] = pin.Info().NARHash
		} else {
			away = append(away, path)
		}
	}
	usable, _ := s.candidates()
	for _, id := range usable {
		kept := without(away, func(path string) bool { return !s.holds.has(id, path) })
		if len(kept) == 0 {
			continue
		}
		infos, err := s.holds.infos(ctx, id, kept)
		if err != nil {
			continue // another builder has them, too
		}
		for path, info := range infos {
			hashes[path] = info.NARHash
		}
		away = without(away, func(path string) bool { return hashes[path] != "" })
	}
	if len(away) > 0 {
		return nil, errUnknownHash
	}
	return hashes, nil
}
