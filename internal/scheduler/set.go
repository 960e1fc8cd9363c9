// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"iter"
	"math/bits"
)

// wordBits is the number of members in one word of a set.
const wordBits = 64

// set holds small numbers: places of builders in a list, or of needs in the
// queue. A thousand builders are sixteen words, so that asking whether a free
// builder could take a request costs next to nothing.
type set []uint64

// newSet returns an empty set for the numbers below n.
func newSet(n int) set { return make(set, (n+wordBits-1)/wordBits) }

func (s set) add(i int)      { s[i/wordBits] |= 1 << (i % wordBits) }
func (s set) remove(i int)   { s[i/wordBits] &^= 1 << (i % wordBits) }
func (s set) has(i int) bool { return s[i/wordBits]&(1<<(i%wordBits)) != 0 }

// empty reports whether the set has no members.
func (s set) empty() bool { return !s.intersects(s) }

// intersects reports whether s and t, sets of the same size, share a member.
func (s set) intersects(t set) bool {
	for i, word := range s {
		if word&t[i] != 0 {
			return true
		}
	}
	return false
}

// and returns what s and t, sets of the same size, have in common.
func (s set) and(t set) set {
	out := make(set, len(s))
	for i, word := range s {
		out[i] = word & t[i]
	}
	return out
}

// all yields the members, smallest first.
func (s set) all() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, word := range s {
			for ; word != 0; word &= word - 1 {
				if !yield(i*wordBits + bits.TrailingZeros64(word)) {
					return
				}
			}
		}
	}
}
