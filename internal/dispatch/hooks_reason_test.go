// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
)

// A reason is told once, to the hook whose connection was ended, and not for long.
func TestReasonsOfHooks(t *testing.T) {
	key := func(pid uint32) connect.Key {
		return connect.Key{Namespace: 1, Process: connect.Process{PID: pid, StartTime: 7}}
	}
	tests := map[string]struct {
		of, asks connect.Key
		why      string
		wait     time.Duration
		want     string
	}{
		"told":           {of: key(2), asks: key(2), why: "fire", want: "fire"},
		"to others":      {of: key(2), asks: key(3), why: "fire"},
		"too late":       {of: key(2), asks: key(2), why: "fire", wait: reasonKept + time.Second},
		"cut":            {of: key(2), asks: key(2), why: strings.Repeat("x", 5000), want: strings.Repeat("x", connect.MaxReason)},
		"of nobody":      {why: "fire"},
		"of nobody else": {asks: key(2)},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHooks()
				h.explain(tc.of, errors.New(tc.why))
				time.Sleep(tc.wait)
				synctest.Wait()
				if got := h.reason(tc.asks); got != tc.want {
					t.Errorf("reason %.40q, want %.40q", got, tc.want)
				}
				if got := h.reason(tc.asks); got != "" {
					t.Errorf("told again: %.40q", got)
				}
			})
		})
	}
}
