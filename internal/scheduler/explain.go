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
	// Ahead is the number of requests that are served before this one and
	// could take the same builders.
	Ahead int
	// Busy and Slots count the slots of the usable builders that serve the
	// class.
	Busy, Slots int
	// Reasons has one text for each builder that would serve the class but
	// cannot be used: "mac-2 unreachable since 14:02".
	Reasons []string
	// Since is when the request began to wait.
	Since time.Time
}

// Queued is a number of requests of one class.
type Queued struct {
	Class Class
	Count int
}

// Explain says why a request of a class would wait in s behind those ahead of it.
func Explain(s Snapshot, c Class, ahead []Queued, since time.Time) Waiting {
	w := Waiting{Class: c, Since: since}
	for i := range s.Builders {
		b := &s.Builders[i]
		switch {
		case !b.Serves(c):
		case b.Usable(s.Now):
			w.Busy += b.Running
			w.Slots += b.Slots
		default:
			w.Reasons = append(w.Reasons, b.unusable(s.Now))
		}
	}
	for _, other := range ahead {
		if competes(s.Builders, other.Class, c) {
			w.Ahead += other.Count
		}
	}
	return w
}

// String is the line shown to the user, without a final newline: "waiting for
// an x86_64-linux builder: 3 ahead, 8/8 slots busy, mac-2 unreachable since
// 14:02".
func (w Waiting) String() string {
	system, with, _ := strings.Cut(w.Class.String(), " ")
	var b strings.Builder
	fmt.Fprintf(&b, "waiting for %s %s builder", article(system), system)
	if with != "" {
		b.WriteString(" " + with)
	}
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
	reasons := w.Reasons
	if more := len(reasons) - maxReasons; more > 0 {
		reasons = append(reasons[:maxReasons:maxReasons], fmt.Sprintf("%d more not usable", more))
	}
	b.WriteString(": " + strings.Join(append(parts, reasons...), ", "))
	return b.String()
}

// unusable says why the builder takes no builds at now, and since when.
func (b *Builder) unusable(now time.Time) string {
	if b.Down != "" {
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

// competes reports whether one builder serves both classes.
func competes(builders []Builder, a, b Class) bool {
	for i := range builders {
		if builders[i].Serves(a) && builders[i].Serves(b) {
			return true
		}
	}
	return false
}

func article(word string) string {
	if strings.ContainsRune("aeioux8", rune((word + " ")[0])) {
		return "an"
	}
	return "a"
}
