// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"math/rand/v2"
	"runtime"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Once probes a target a single time, with no schedule and nothing known beforehand.
// Of the options, those about dialing, handshakes and randomness count. What is wrong
// with the builder is in the result; the only reason for an error is that ctx ended.
func Once(ctx context.Context, opts Options, target Target) (Result, error) {
	target = target.withDefaults()
	result, _, err := newChecker(opts).check(ctx, &target, knowledge{firstKey: target.PinnedHostKey})
	return result, err
}

// newChecker makes a checker with what options leave open filled in.
func newChecker(opts Options) *checker {
	if opts.Dial == nil {
		opts.Dial = sshconn.NewDialer(sshconn.DefaultDenied())
	}
	if opts.MaxHandshakes <= 0 {
		opts.MaxHandshakes = 8 * runtime.GOMAXPROCS(0)
	}
	if opts.Random == nil {
		opts.Random = rand.Float64
	}
	return &checker{dial: opts.Dial, gate: newGate(opts.MaxHandshakes), random: opts.Random}
}
