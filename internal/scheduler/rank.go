// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"cmp"
	"math/bits"
)

// pick returns the best of some builders for r: the steps of [Place] that rank.
func pick(builders []Builder, among set, r *Request) (int, bool) {
	best, found := contender{}, false
	seed := hash(offset64, r.Key)
	for i := range among.all() {
		b := &builders[i]
		c := contender{index: i, builder: b, present: r.Present[b.ID], seed: seed}
		if !found || c.better(&best) {
			best, found = c, true
		}
	}
	return best.index, found
}

// contender is a builder in the choice for one request.
type contender struct {
	index   int
	builder *Builder
	present int
	// seed is the hash of the request's key; tie is that of key and builder,
	// once it is needed.
	seed, tie uint64
}

func (c *contender) better(other *contender) bool {
	if d := cmp.Compare(c.present, other.present); d != 0 {
		return d > 0
	}
	if d := compareLoad(c.builder, other.builder); d != 0 {
		return d < 0
	}
	if d := cmp.Compare(c.rendezvous(), other.rendezvous()); d != 0 {
		return d > 0
	}
	return c.builder.ID < other.builder.ID
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

// The parameters of 64-bit FNV-1a.
const (
	offset64 = 0xcbf29ce484222325
	prime64  = 0x100000001b3
)

// hash goes on from sum with the bytes of text and a final zero.
func hash(sum uint64, text string) uint64 {
	for i := range len(text) {
		sum = (sum ^ uint64(text[i])) * prime64
	}
	return sum * prime64
}

// rendezvous is highest-random-weight hashing: losing one builder moves only
// the keys that it had.
func (c *contender) rendezvous() uint64 {
	if c.tie == 0 {
		// FNV's high bits barely depend on the last bytes; one multiplication
		// spreads them.
		sum := hash(c.seed, c.builder.ID)
		c.tie = (sum ^ sum>>29) * 0x9e3779b97f4a7c15
	}
	return c.tie
}
