// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func TestWhatIsRecorded(t *testing.T) {
	const (
		waited     = "x86_64-linux waited 0s"
		dispatched = "dispatched after 0s"
	)
	failed := &daemon.BuildResult{Status: daemon.StatusPermanentFailure}
	tests := map[string]struct {
		options  daemontest.Options
		prepare  func(*rig, *machine)
		patience time.Duration
		want     []string
	}{
		"success": {want: []string{waited, dispatched, `x86_64-linux ended on "b/one": Built`}},
		"failure": {
			options: daemontest.Options{Build: func(context.Context, *daemontest.Build) *daemon.BuildResult { return failed }},
			want:    []string{waited, dispatched, `x86_64-linux ended on "b/one": PermanentFailure`},
		},
		"error of the builder": {
			options: daemontest.Options{Before: on(daemon.OpBuildDerivation, daemontest.Refuse("no"))},
			want:    []string{waited, dispatched, `x86_64-linux ended on "b/one": Error`},
		},
		"lost once": {
			options: daemontest.Options{Before: daemontest.At(1, daemontest.HangUp)},
			prepare: func(r *rig, m *machine) { r.use(m, newMachine(r.t, "two", daemontest.Options{})) },
			want:    []string{waited, dispatched, "left b/one: Building", waited, `x86_64-linux ended on "b/two": Built`},
		},
		"waited": {
			prepare: func(_ *rig, m *machine) { m.down(); time.AfterFunc(time.Minute, m.up) },
			want:    []string{"x86_64-linux waited 1m0s", `x86_64-linux ended on "b/one": Built`},
		},
		"left while waiting": {
			prepare:  func(_ *rig, m *machine) { m.down() },
			patience: time.Minute,
			want:     []string{`x86_64-linux ended on "": ClientGone`},
		},
		"left while building": {
			options:  daemontest.Options{Before: on(daemon.OpBuildDerivation, daemontest.Silent)},
			patience: time.Minute,
			want:     []string{waited, dispatched, `x86_64-linux ended on "b/one": ClientGone`},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, "one", tc.options, slots(8))
				r := newRig(t, rigOptions{builders: []*machine{m}})
				if tc.prepare != nil {
					tc.prepare(r, m)
				}
				c := r.connect(1, "x86_64-linux.0")
				synctest.Wait()
				if n := r.server.Connections(); n != 1 {
					t.Errorf("%d connections, want 1", n)
				}
				ctx := t.Context()
				if tc.patience > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.patience)
					defer cancel()
				}
				_, err := c.buildUntil(ctx, newDerivation("out"))
				t.Logf("the client got %v", err)
				c.Close()
				synctest.Wait()
				if n := r.server.Connections(); n != 0 {
					t.Errorf("%d connections, want none", n)
				}
				// How a redial is jittered is no concern here.
				got := r.events.all()
				if name == "waited" && len(got) == 2 {
					var waited time.Duration
					if waited, err = time.ParseDuration(got[0][len("x86_64-linux waited "):]); err == nil && waited >= time.Minute && waited < 2*time.Minute {
						got[0] = tc.want[0]
					}
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
			})
		})
	}
}
