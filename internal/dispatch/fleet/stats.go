// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"slices"
	"strings"
	"time"
)

// Stats is what a Fleet has on one builder.
type Stats struct {
	// Builder is its ID.
	Builder string `json:"builder"`
	// Connections and BulkConnections are open SSH connections: those for builds
	// and questions, and those for transfers, in use or kept warm.
	Connections     int `json:"connections"`
	BulkConnections int `json:"bulkConnections"`
	// BusySessions are daemon sessions that builds or questions use, IdleSessions
	// those that wait for one, Keepers those that hold store paths.
	BusySessions int `json:"busySessions"`
	IdleSessions int `json:"idleSessions"`
	Keepers      int `json:"keepers"`
	// Transfers are running on connections of their own, or about to.
	Transfers int `json:"transfers"`
	// Held are the store paths that the current keeper knows to be there.
	Held int `json:"held"`
	// SessionLimit is how many sessions one connection gets.
	SessionLimit int `json:"sessionLimit"`
	// Handshakes are connections being made.
	Handshakes int `json:"handshakes"`
	// SentBytes and ReceivedBytes are what sessions have carried since the builder is
	// known, without what SSH adds.
	SentBytes     uint64 `json:"sentBytes"`
	ReceivedBytes uint64 `json:"receivedBytes"`
	// Down says in a few words why the builder cannot be used, as of Since; empty
	// if it can.
	Down  string    `json:"down,omitempty"`
	Since time.Time `json:"since,omitzero"`
}

// Stats returns the state of the pool of every builder, in order of ID.
func (f *Fleet) Stats() []Stats {
	f.mu.Lock()
	hosts := make([]*host, 0, len(f.hosts))
	for _, h := range f.hosts {
		hosts = append(hosts, h)
	}
	f.mu.Unlock()
	all := make([]Stats, len(hosts))
	for i, h := range hosts {
		all[i] = h.stats()
	}
	slices.SortFunc(all, func(a, b Stats) int { return strings.Compare(a.Builder, b.Builder) })
	return all
}

func (h *host) stats() Stats {
	b := h.builder()
	s := Stats{Builder: h.id, Down: b.Down, Since: b.Since, Handshakes: len(h.handshakes), Transfers: len(h.bulk.slots)}
	h.mu.Lock()
	s.Connections, s.BulkConnections = len(h.links), len(h.bulk.links)
	s.BusySessions, s.IdleSessions = h.pool.busy, len(h.pool.idle)
	s.SessionLimit = h.sessionLimit()
	h.mu.Unlock()
	s.SentBytes, s.ReceivedBytes = h.traffic.sent.Load(), h.traffic.received.Load()
	h.keep.mu.RLock()
	s.Keepers = len(h.keep.keepers)
	if k := h.keep.current; k != nil {
		s.Held = len(k.valid)
	}
	h.keep.mu.RUnlock()
	return s
}
