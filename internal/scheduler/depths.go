// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"cmp"
	"slices"
	"time"
)

// Depth says how many requests of a class wait.
type Depth struct {
	Class   Class
	Waiting int
	// Oldest is since when the one that came first has waited.
	Oldest time.Time
}

// Depths returns the classes that requests wait for, in the order of their words.
// It costs less than Status.
func (l *Local) Depths() []Depth {
	l.mu.Lock()
	defer l.mu.Unlock()
	byClass := map[string]*Depth{}
	for _, n := range l.queue.needs {
		key := n.class.Key()
		d := byClass[key]
		if d == nil {
			d = &Depth{Class: n.class}
			byClass[key] = d
		}
		for _, s := range n.shares {
			d.Waiting += len(s.waiters)
			// Within a share the first has waited longest.
			if first := s.waiters[0].since; d.Oldest.IsZero() || first.Before(d.Oldest) {
				d.Oldest = first
			}
		}
	}
	all := make([]Depth, 0, len(byClass))
	for _, d := range byClass {
		all = append(all, *d)
	}
	slices.SortFunc(all, func(a, b Depth) int { return cmp.Compare(a.Class.String(), b.Class.String()) })
	return all
}
