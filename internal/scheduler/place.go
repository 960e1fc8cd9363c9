// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"cmp"
	"hash/fnv"
	"math/bits"
	"slices"
	"time"
)

// Builder is one endpoint as the scheduler sees it.
type Builder struct {
	// ID names the builder; it is unique in a snapshot.
	ID string
	// Systems are the platforms it builds for.
	Systems []string
	// Supported and Mandatory are its features as in a machines file:
	// mandatory ones count as supported, and a build must require all of them.
	Supported, Mandatory []string
	// Slots is how many builds it may run at once.
	Slots int
	// Speed is its speed relative to the others; values below 1 count as 1.
	Speed int
	// Down says why the builder cannot be used at present, in one or two
	// words such as "unreachable"; empty means healthy.
	Down string
	// Since is when Down began; zero if unknown.
	Since time.Time
	// Cordon, if set, keeps new builds away.
	Cordon *Cordon
	// Running is how many builds it runs. [Local] fills it in.
	Running int
}

// Cordon keeps new builds from a builder; running ones finish.
type Cordon struct {
	// Reason is shown to those who wait.
	Reason string
	// Until ends the cordon; zero means never.
	Until time.Time
}

// Serves reports whether the builder can do every build of the class: it
// builds for the system, has all the features and demands none that the class
// leaves optional. Health and load are not considered.
func (b *Builder) Serves(c Class) bool {
	if !slices.Contains(b.Systems, c.System) {
		return false
	}
	for _, list := range [2][]string{c.Features, c.Mandatory} {
		for _, f := range list {
			if !slices.Contains(b.Supported, f) && !slices.Contains(b.Mandatory, f) {
				return false
			}
		}
	}
	for _, f := range b.Mandatory {
		if !slices.Contains(c.Mandatory, f) {
			return false
		}
	}
	return true
}

// Cordoned reports whether the builder is cordoned at now.
func (b *Builder) Cordoned(now time.Time) bool {
	return b.Cordon != nil && (b.Cordon.Until.IsZero() || now.Before(b.Cordon.Until))
}

// Usable reports whether the builder is healthy and not cordoned at now.
func (b *Builder) Usable(now time.Time) bool {
	return b.Down == "" && !b.Cordoned(now)
}

// Snapshot is what placement decides on. Place does not change it.
type Snapshot struct {
	Builders []Builder
	// Now is compared with the ends of cordons.
	Now time.Time
}

// Request asks for a slot.
type Request struct {
	// Class is what the build needs.
	Class Class
	// Key identifies the build's inputs: of builders that are otherwise equal,
	// requests with the same key get the same one.
	Key string
	// Avoid lists builders that the build has already failed on. They are
	// taken only where no other usable builder serves the class.
	Avoid []string
}

// Place returns the index in s.Builders of the builder that should run the
// request now, or false if it must wait.
//
// Candidates serve the class, are healthy, not cordoned, not avoided (or all
// are) and have a free slot. Among them, in this order:
//
//  1. the lowest load after placement: builds running plus this one, divided by
//     slots times speed;
//  2. the highest hash of request key and builder ID;
//  3. the lowest ID.
func Place(s Snapshot, r Request) (int, bool) {
	avoid := mustAvoid(s, r)
	best, found := 0, false
	for i := range s.Builders {
		b := &s.Builders[i]
		if b.Running >= b.Slots || !b.Usable(s.Now) || !b.Serves(r.Class) {
			continue
		}
		if avoid && slices.Contains(r.Avoid, b.ID) {
			continue
		}
		if !found || better(b, &s.Builders[best], r.Key) {
			best, found = i, true
		}
	}
	return best, found
}

// mustAvoid reports whether a usable builder outside r.Avoid serves the class,
// busy or not: only then is avoiding worth a wait.
func mustAvoid(s Snapshot, r Request) bool {
	if len(r.Avoid) == 0 {
		return false
	}
	return slices.ContainsFunc(s.Builders, func(b Builder) bool {
		return b.Slots > 0 && b.Usable(s.Now) && b.Serves(r.Class) && !slices.Contains(r.Avoid, b.ID)
	})
}

func better(a, b *Builder, key string) bool {
	if c := compareLoad(a, b); c != 0 {
		return c < 0
	}
	if c := cmp.Compare(rendezvous(key, a.ID), rendezvous(key, b.ID)); c != 0 {
		return c > 0
	}
	return a.ID < b.ID
}

// compareLoad compares (running+1)/(slots*speed) without rounding.
func compareLoad(a, b *Builder) int {
	aHigh, aLow := bits.Mul64(uint64(a.Running+1), capacity(b))
	bHigh, bLow := bits.Mul64(uint64(b.Running+1), capacity(a))
	return cmp.Or(cmp.Compare(aHigh, bHigh), cmp.Compare(aLow, bLow))
}

func capacity(b *Builder) uint64 {
	return uint64(max(b.Slots, 1)) * uint64(max(b.Speed, 1))
}

// rendezvous is highest-random-weight hashing: losing one builder moves only
// the keys that it had.
func rendezvous(key, id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	h.Write([]byte{0})
	h.Write([]byte(id))
	// FNV's high bits barely depend on the last bytes; one multiplication
	// spreads them.
	sum := h.Sum64()
	return (sum ^ sum>>29) * 0x9e3779b97f4a7c15
}
