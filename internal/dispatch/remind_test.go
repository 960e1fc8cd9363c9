// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// withoutReminders leaves out what is only said because something takes long.
func withoutReminders(lines []string) []string {
	return slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, ", for ") })
}

// A builder whose connection is alive and whose daemon hangs must not make users
// wait without a word, whatever it was about.
func TestUsersAreTold(t *testing.T) {
	tests := map[string]struct {
		op         daemon.Operation
		substitute bool
		hang       time.Duration
		want       []string
	}{
		"asked what it has":   {daemon.OpQueryValidPaths, false, 29 * time.Second, nil},
		"fetching inputs":     {daemon.OpQueryValidPaths, true, 65 * time.Second, []string{"fetches inputs from its binary caches, for 30s now", "fetches inputs from its binary caches, for 1m0s now"}},
		"receiving inputs":    {daemon.OpAddMultipleToStore, false, 35 * time.Second, []string{"receives inputs, for 30s now"}},
		"about to build":      {daemon.OpBuildDerivation, false, 95 * time.Second, []string{"has not begun the build, for 30s now", "has not begun the build, for 1m0s now", "has not begun the build, for 1m30s now"}},
		"asked for an output": {daemon.OpQueryPathInfo, false, 10 * time.Second, nil},
		"returning outputs":   {daemon.OpNARFromPath, false, 35 * time.Second, []string{"returns outputs, for 30s now"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hang := on(tc.op, after(tc.hang))
				m := newMachine(t, "one", daemontest.Options{Before: func(ctx context.Context, call daemontest.Call) error {
					if q, ok := call.Request.(*daemon.QueryValidPaths); ok && q.Substitute != tc.substitute {
						return nil
					}
					return hang(ctx, call)
				}})
				r := newRig(t, rigOptions{builders: []*machine{m}})
				c := r.connect(1, "x86_64-linux.0")
				a := newFile("a", "A")
				if tc.substitute {
					c.ask(true)
				}
				if err := c.send(a); err != nil {
					t.Fatal(err)
				}
				c.mustBuild(newDerivation("out", a))
				var want []string
				for _, text := range tc.want {
					want = append(want, "builder b/one "+text)
				}
				if diff := cmp.Diff(want, c.said.lines()); diff != "" {
					t.Errorf("lines (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// So is one whose daemon hangs after the end of the build.
func TestUsersAreToldOfTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			b.Send(daemon.StartActivity{ID: 77, Type: daemon.ActivityBuild})
			b.Send(daemon.StopActivity{ID: 77})
			time.Sleep(65 * time.Second)
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		c.mustBuild(newDerivation("out"))
		want := []string{"builder b/one returns outputs, for 30s now", "builder b/one returns outputs, for 1m0s now"}
		if diff := cmp.Diff(want, c.said.lines()); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
	})
}

// A build that has begun may be silent.
func TestSilentBuildIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "one", daemontest.Options{Build: func(context.Context, *daemontest.Build) *daemon.BuildResult {
			time.Sleep(10 * time.Hour)
			return nil
		}})
		r := newRig(t, rigOptions{builders: []*machine{m}})
		c := r.connect(1, "x86_64-linux.0")
		c.mustBuild(newDerivation("out"))
		if lines := c.said.lines(); len(lines) != 0 {
			t.Errorf("lines = %q", lines)
		}
	})
}
