// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// sized makes outputs of so many bytes, in their order.
func sized(sizes ...int) func(context.Context, *daemontest.Build) *daemon.BuildResult {
	return func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
		for i, o := range b.Derivation.Outputs {
			if _, err := b.Output(o.Name, bytes.Repeat([]byte{'a' + byte(i)}, sizes[i%len(sizes)])); err != nil {
				return &daemon.BuildResult{Status: daemon.StatusMiscFailure, ErrorMessage: err.Error()}
			}
		}
		return &daemon.BuildResult{Status: daemon.StatusBuilt}
	}
}

// Garbage is collected on the builder with every question about an output. Wherever the
// outputs go, the client gets them all.
func TestOutputsOfAllSizes(t *testing.T) {
	const kiB, miB = 1 << 10, 1 << 20
	tests := map[string]struct {
		sizes   []int
		spool   int64
		limit   uint64
		spooled int
	}{
		"small":                         {[]int{kiB}, 64 * miB, 0, 8},
		"one is fetched apart":          {[]int{kiB, kiB, 9 * miB, kiB, kiB, kiB, kiB, kiB}, 64 * miB, 0, 8},
		"the last is fetched apart":     {[]int{kiB, kiB, kiB, kiB, kiB, kiB, kiB, 9 * miB}, 64 * miB, 0, 8},
		"one is over the limit":         {[]int{kiB, 64 * kiB, kiB, kiB, kiB, kiB, kiB, kiB}, 64 * miB, 32 * kiB, 7},
		"one has no room":               {[]int{kiB, 64 * kiB, kiB, kiB, kiB, kiB, kiB, kiB}, 32 * kiB, 0, 7},
		"a large one has no room":       {[]int{9 * miB, kiB, kiB, kiB, kiB, kiB, kiB, kiB}, miB, 0, 7},
		"none is to be in the spool":    {[]int{kiB}, 64 * miB, 1, 0},
		"over both limits, one by one":  {[]int{9 * miB, 12 * miB, kiB, 9 * miB, kiB, kiB, kiB, kiB}, 64 * miB, 10 * miB, 7},
		"the spool fills up on the way": {[]int{10 * kiB}, 45 * kiB, 0, 4},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var m *machine
				m = newMachine(t, "one", daemontest.Options{
					Build: sized(tc.sizes...),
					Before: func(_ context.Context, call daemontest.Call) error {
						switch call.Request.Operation() {
						case daemon.OpQueryPathInfo, daemon.OpNARFromPath:
							m.Collect()
						}
						return nil
					},
				})
				r := newRig(t, rigOptions{builders: []*machine{m}, spool: tc.spool, limits: Limits{SpooledOutput: tc.limit}})
				c := r.connect(1, "x86_64-linux.0")
				d := eight()
				if _, err := c.build(d); err != nil {
					t.Fatal(err)
				}
				r.noneTaken()
				if u := r.spool.Usage(); u.Paths != tc.spooled {
					t.Errorf("%d outputs in the spool, want %d", u.Paths, tc.spooled)
				}
				for i, out := range d.Outputs {
					if got := len(c.fetch(out.Path)); got < tc.sizes[i%len(tc.sizes)] {
						t.Errorf("output %d has %d bytes", i, got)
					}
				}
				if n := len(m.Builds()); n != 1 {
					t.Errorf("%d builds, want one", n)
				}
				c.Close()
				synctest.Wait()
				r.noneLeft()
			})
		})
	}
}

// A build costs no new session where the last one has left a good one.
func TestSessionsAreReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		for i := range 10 {
			c.mustBuild(newDerivation(fmt.Sprint("out", i)))
		}
		synctest.Wait()
		// One that builds, and one that holds what was built.
		if n := m.Sessions(); n > 2 {
			t.Errorf("%d sessions for 10 builds", n)
		}
	})
}
