// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"sync"
	"time"
)

// Lease is a slot on a builder. It ends with the first call of Release or
// Orphan; further calls of either do nothing. It is safe for concurrent use.
type Lease struct {
	// Builder is the ID of the builder.
	Builder string

	ledger *Local
	once   sync.Once
}

// Release gives the slot back.
func (l *Lease) Release() {
	l.once.Do(func() { l.ledger.give(l.Builder, taken{all: -1}) })
}

// Orphan gives the slot back after the grace time: the build was lost by
// silence and may still run on the builder. Until then the slot counts as
// taken, also while the builder is gone. Without a grace time it is Release.
func (l *Lease) Orphan(grace time.Duration) {
	if grace <= 0 {
		l.Release()
		return
	}
	l.once.Do(func() {
		l.ledger.give(l.Builder, taken{orphaned: 1})
		time.AfterFunc(grace, func() { l.ledger.give(l.Builder, taken{all: -1, orphaned: -1}) })
	})
}
