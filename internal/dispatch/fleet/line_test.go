// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

// A build that is cancelled in its first moments is hung up on after them; the
// caller does not wait for that.
func TestHangUpWaitsForTheBuildToBegin(t *testing.T) {
	tests := map[string]struct {
		after time.Duration // from the request to the cancellation
		want  time.Duration // from the request to the hang-up
	}{
		"at once": {1, hangUpDelay},
		"soon":    {hangUpDelay / 2, hangUpDelay},
		"later":   {time.Second, time.Second},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var began, ended time.Time
				m := newMachine(t, daemontest.Options{Build: func(ctx context.Context, _ *daemontest.Build) *daemon.BuildResult {
					began = time.Now()
					<-ctx.Done()
					ended = time.Now()
					return nil
				}})
				m.lasting = true
				f, _ := newFleet(t, m)
				s := open(t, f)
				ctx, cancel := context.WithTimeout(t.Context(), tc.after)
				defer cancel()
				_, err := s.BuildOutputs(ctx, drvC, &daemon.BasicDerivation{}, nil, daemon.Outputs{})
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error = %v", err)
				}
				called := time.Now()
				s.Close()
				s.Close()
				if time.Since(called) != 0 {
					t.Errorf("Close took %v", time.Since(called))
				}
				<-s.Closed()
				if left, took := max(tc.want-tc.after, 0), time.Since(called); took != left+dyingTime {
					t.Errorf("Closed tells after %v, want %v and time for the build to die", took, left)
				}
				synctest.Wait()
				if ended.Sub(began) != tc.want {
					t.Errorf("hung up %v after the request, want %v", ended.Sub(began), tc.want)
				}
				if limit := f.Stats()[0]; limit.BusySessions != 0 {
					t.Errorf("%+v, want no session in use", limit)
				}
			})
		})
	}
}

// After the result nobody waits.
func TestHangUpAfterABuild(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		m.lasting = true
		f, _ := newFleet(t, m)
		s := open(t, f)
		build(t, s)
		began := time.Now()
		s.Close()
		<-s.Closed()
		if time.Since(began) != 0 {
			t.Errorf("it took %v", time.Since(began))
		}
	})
}

// A builder that does not tell of the end is not waited for forever.
func TestEndThatIsNotTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{Build: func(ctx context.Context, _ *daemontest.Build) *daemon.BuildResult {
			<-ctx.Done()
			time.Sleep(time.Hour)
			return nil
		}})
		m.lasting = true
		f, _ := newFleet(t, m)
		s := open(t, f)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = s.BuildOutputs(ctx, drvC, &daemon.BasicDerivation{}, nil, daemon.Outputs{})
		began := time.Now()
		s.Close()
		<-s.Closed()
		if time.Since(began) != endTimeout || s.Ended() {
			t.Errorf("it took %v, want %v; the builder has ended it: %v", time.Since(began), endTimeout, s.Ended())
		}
		time.Sleep(time.Hour) // until the daemon ends it
	})
}
