// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"maps"
	"slices"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// maxActivities bounds the activities that are remembered as open.
const maxActivities = 4096

// log passes a builder's messages on to the client. A client that does not read
// stops the builder, so nothing piles up. It is used by one goroutine at a time.
type log struct {
	send func(daemon.Message) error
	// open are the activities that have begun and not ended.
	open map[uint64]struct{}
}

func (l *log) relay(m daemon.Message) error {
	switch m := m.(type) {
	case daemon.StartActivity:
		if l.open == nil {
			l.open = map[uint64]struct{}{}
		}
		if len(l.open) < maxActivities {
			l.open[m.ID] = struct{}{}
		}
	case daemon.StopActivity:
		delete(l.open, m.ID)
	}
	return l.send(m)
}

// reset ends the activities of a builder that was lost, so that the client does
// not show them for ever beside those of the next one.
func (l *log) reset() error {
	for _, id := range slices.Sorted(maps.Keys(l.open)) {
		if err := l.send(daemon.StopActivity{ID: id}); err != nil {
			return err
		}
	}
	l.open = nil
	return nil
}
