// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"fmt"
	"strings"
	"time"
)

// maxReasons bounds the builders named in a waiting line.
const maxReasons = 4

// Waiting says why a request waits.
type Waiting struct {
	// Class is what the request needs.
	Class Class
	// Ahead is the number of requests that come before this one: those that
	// are served first, by the rule of turns, if none is added or given up, of
	// those that could use the same builders.
	Ahead int
	// Busy and Slots count the slots of the builders that the request could
	// use now. Orphaned is how many of the busy ones are counted for builds
	// that were lost by silence and may still run.
	Busy, Slots, Orphaned int
	// Reasons has a text for each builder, up to four, that serves the class
	// but cannot be used: "mac-2 unreachable since 14:02".
	Reasons []string
	// More is the number of such builders that Reasons leaves out.
	More int
	// Since is when the request began to wait.
	Since time.Time
}

// Explain says why a request would wait in s behind a number of others.
func Explain(s Snapshot, r Request, ahead int, since time.Time) Waiting {
	return explain(s, r, fitting(s, r.Class, r.Avoid, r.Exclude), ahead, since)
}

func explain(s Snapshot, r Request, f fit, ahead int, since time.Time) Waiting {
	w := Waiting{Class: r.Class, Ahead: ahead, Since: since}
	for i := range f.serves.all() {
		b := &s.Builders[i]
		switch {
		case f.takes.has(i):
			w.Busy += b.Running
			w.Slots += b.Slots
			w.Orphaned += b.Orphaned
		case len(w.Reasons) == maxReasons:
			w.More++
		default:
			w.Reasons = append(w.Reasons, b.unusable(s.Now))
		}
	}
	return w
}

// String is the line shown to the user, without a final newline: "waiting for
// an x86_64-linux builder: 3 ahead, 8/8 slots busy, mac-2 unreachable since
// 14:02".
func (w Waiting) String() string {
	return "waiting for " + w.what() + ": " + w.why()
}

// what describes the builder that is waited for: "an x86_64-linux builder with
// kvm".
func (w Waiting) what() string {
	system, with, _ := strings.Cut(w.Class.String(), " ")
	text := fmt.Sprintf("%s %s builder", article(system), system)
	if with != "" {
		text += " " + with
	}
	return text
}

func (w Waiting) why() string {
	var parts []string
	if w.Ahead > 0 {
		parts = append(parts, fmt.Sprintf("%d ahead", w.Ahead))
	}
	switch {
	case w.Slots > 0:
		parts = append(parts, fmt.Sprintf("%d/%d slots busy", w.Busy, w.Slots))
	case len(w.Reasons) == 0:
		parts = append(parts, "none is known")
	}
	switch {
	case w.Orphaned == 1:
		parts = append(parts, "1 of them perhaps still running a lost build")
	case w.Orphaned > 1:
		parts = append(parts, fmt.Sprintf("%d of them perhaps still running lost builds", w.Orphaned))
	}
	parts = append(parts, w.Reasons...)
	if w.More > 0 {
		parts = append(parts, fmt.Sprintf("%d more not usable", w.More))
	}
	return strings.Join(parts, ", ")
}

// WaitLimitError is the end of a wait that took as long as a wait may.
type WaitLimitError struct {
	// Limit is the longest time that a request waits.
	Limit time.Duration
	// Waiting is why the request waited, at the end.
	Waiting Waiting
}

// Error says what was waited for, how long and why, and what sets the limit.
func (e *WaitLimitError) Error() string {
	return fmt.Sprintf("waited %v for %s, the limit set by --wait-timeout: %s", e.Limit, e.Waiting.what(), e.Waiting.why())
}

// unusable says why the builder takes no builds at now, and since when.
func (b *Builder) unusable(now time.Time) string {
	switch {
	case b.Down == "" && !b.Cordoned(now) && b.Slots <= 0:
		return b.ID + " has no slots"
	case b.Down == "" && !b.Cordoned(now):
		return b.ID + " left out because this build failed there"
	case b.Down != "":
		text := b.ID + " " + b.Down
		if !b.Since.IsZero() {
			text += " since " + clockTime(b.Since, now)
		}
		return text
	}
	text := b.ID + " cordoned"
	if !b.Cordon.Until.IsZero() {
		text += " until " + clockTime(b.Cordon.Until, now)
	}
	if b.Cordon.Reason != "" {
		text += " (" + b.Cordon.Reason + ")"
	}
	return text
}

// clockTime leaves the date out when it is no more than a day away.
func clockTime(t, now time.Time) string {
	t = t.In(now.Location())
	if d := now.Sub(t).Abs(); d < 24*time.Hour {
		return t.Format("15:04")
	}
	return t.Format("Jan 2 15:04")
}

func article(word string) string {
	if strings.ContainsRune("aeioux8", rune((word + " ")[0])) {
		return "an"
	}
	return "a"
}
