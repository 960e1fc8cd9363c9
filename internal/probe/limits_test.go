// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// A daemon that says more than any needs to is not listened to: it could have the
// operator run out of memory, or of time for others.
func TestTalkativeDaemons(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		build func(context.Context, *daemontest.Build) *daemon.BuildResult
		words string
	}{
		"long message": {func(context.Context, *daemontest.Build) *daemon.BuildResult {
			return &daemon.BuildResult{Status: daemon.StatusMiscFailure, ErrorMessage: strings.Repeat("no ", maxDaemonMessage)}
		}, "nix-daemon hung up"},
		"message that is not too long": {func(context.Context, *daemontest.Build) *daemon.BuildResult {
			return &daemon.BuildResult{Status: daemon.StatusMiscFailure, ErrorMessage: "error: interrupted" + strings.Repeat(" ", maxDaemonMessage/2)}
		}, "interrupted"},
		"messages without end": {func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			for b.Log("no") == nil {
				continue
			}
			return nil
		}, "nix-daemon talks without end"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: newNix(t, daemontest.Options{Build: tc.build}).exec}))
			target.Canary = true
			began := time.Now()
			result, _ := probeOnce(t, target)
			if got := result.Outcome(StepSystemsVerified); got.Reason != ReasonCanaryInconclusive || !strings.Contains(got.Message, tc.words) {
				t.Errorf("got %+v, want %s", got, tc.words)
			}
			if took := time.Since(began); took >= canaryTimeout {
				t.Errorf("it took %s", took)
			}
		})
	}
}
