// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemontest

import (
	"maps"
	"slices"
)

// hold makes paths temporary roots: they stay as long as the connection. Nix does
// that with what it is told to, what is uploaded, and what a build uses and makes.
func (s *session) hold(paths ...string) {
	s.daemon.mu.Lock()
	defer s.daemon.mu.Unlock()
	for _, path := range paths {
		s.daemon.roots[s][path] = true
	}
}

// forget takes away the roots of a connection that has ended.
func (d *Daemon) forget(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.roots, s)
}

// Collect removes every path that no connection holds and no held path refers to,
// as a garbage collector without permanent roots does, and returns what it has
// removed, sorted.
func (d *Daemon) Collect() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	live := map[string]bool{}
	var mark func(path string)
	mark = func(path string) {
		if e, ok := d.store[path]; ok && !live[path] {
			live[path] = true
			for _, r := range e.info.References {
				mark(r)
			}
		}
	}
	for _, roots := range d.roots {
		for path := range roots {
			mark(path)
		}
	}
	var removed []string
	for _, path := range slices.Sorted(maps.Keys(d.store)) {
		if !live[path] {
			removed = append(removed, path)
			delete(d.store, path)
		}
	}
	return removed
}
