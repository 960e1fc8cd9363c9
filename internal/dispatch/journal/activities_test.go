// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package journal

import (
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

func start(id uint64) daemon.Message { return daemon.StartActivity{ID: id, Type: daemon.ActivityBuild} }
func stop(id uint64) daemon.Message  { return daemon.StopActivity{ID: id} }

func TestStopActivities(t *testing.T) {
	t.Parallel()
	j := New(Options{})
	f := j.Follow()
	write(t, j, start(1), start(2), start(3), stop(2))
	for range 2 { // the second time there is nothing left to stop
		if err := j.StopActivities(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "messages", rest(t, f, 99), "start 1", "start 2", "start 3", "stop 2", "stop 3", "stop 1")
}

func TestLateFollowerGetsTheActivitiesRight(t *testing.T) {
	t.Parallel()
	j := newJournal()
	write(t, j, start(1), start(2), daemon.LogLine(2, "lost"), stop(2), start(3), start(4))
	writeLines(t, j, 0, room-1) // 1 to 4 begin before what is kept
	write(t, j, daemon.LogLine(1, "one"))
	write(t, j, stop(3), daemon.LogLine(4, "four"))
	got := rest(t, j.Follow(), 99)
	if len(got) < 8 {
		t.Fatalf("messages: %q", got)
	}
	want(t, "beginning", got[:4], "[4 lines of the log are missing here]", "start 1", "start 3", "start 4")
	want(t, "end", got[len(got)-3:], "1> one", "stop 3", "4> four")
}

func TestFollowerThatMissesAnEnd(t *testing.T) {
	t.Parallel()
	j := newJournal()
	fast, slow := j.Follow(), j.Follow()
	write(t, j, start(1), start(2), start(3))
	rest(t, slow, 3)
	write(t, j, stop(1), stop(2), start(2), line(0)) // the next builder uses 2 again
	rest(t, fast, 99)
	writeLines(t, j, 1, room+1)
	got := rest(t, slow, 6)
	want(t, "after the gap", got, "[1 line of the log is missing here]", "stop 2", "stop 1", "start 2", "001", "002")
	write(t, j, stop(3))
	rest(t, slow, room-2)
	want(t, "known activity", rest(t, slow, 99), "stop 3")
}

// What belongs to an activity that could not be remembered is left out: clients do
// not expect it.
func TestForgottenActivities(t *testing.T) {
	t.Parallel()
	j := newJournal()
	write(t, j, daemon.StartActivity{ID: 9, Text: strings.Repeat("x", maxActivityBytes)})
	writeLines(t, j, 0, room)
	write(t, j, daemon.LogLine(9, "hidden"), stop(9), line(room))
	for _, text := range rest(t, j.Follow(), 99) {
		if strings.Contains(text, "9>") || strings.HasSuffix(text, " 9") {
			t.Errorf("message of an unknown activity: %q", text)
		}
	}
	// Where nothing was missed, it is none of our business.
	other := New(Options{})
	write(t, other, daemon.LogLine(5, "stray"), stop(5))
	want(t, "without a gap", rest(t, other.Follow(), 99), "5> stray", "stop 5")
}

func TestActivitiesAreBounded(t *testing.T) {
	t.Parallel()
	j := newJournal()
	f := j.Follow()
	for n := range uint64(3 * maxActivities) {
		write(t, j, start(n+1))
		rest(t, f, 99)
	}
	if len(j.open) > maxActivities || len(j.begun) > maxActivities || len(f.open) > maxActivities || j.begunBytes > maxActivityBytes {
		t.Errorf("remembered: %d, %d, %d, %d bytes", len(j.open), len(j.begun), len(f.open), j.begunBytes)
	}
	for n := range uint64(3 * maxActivities) {
		write(t, j, stop(n+1))
		rest(t, f, 99)
	}
	if len(j.open) != 0 || len(f.open) != 0 {
		t.Errorf("%d and %d activities are still open", len(j.open), len(f.open))
	}
}
