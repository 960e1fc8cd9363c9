// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// events is the harness's own log: what it did to whom, and when a builder was of
// use. It is what errors of builds are judged by.
type events struct {
	began time.Time

	mu    sync.Mutex
	lines []string
	// live is told of every line at once; nil for nobody.
	live io.Writer
	// outages are the times in which a builder could take no build.
	outages map[string][]outage
}

// outage is a time in which a builder could take no build.
type outage struct {
	from, to time.Time // to is zero while it lasts
}

func newEvents(live io.Writer) *events {
	return &events{began: time.Now(), live: live, outages: map[string][]outage{}}
}

// note adds a line.
func (e *events) note(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.add(format, args...)
}

func (e *events) add(format string, args ...any) {
	now := time.Now()
	line := fmt.Sprintf("%s %8.3f  %s", now.Format("15:04:05.000"), now.Sub(e.began).Seconds(), fmt.Sprintf(format, args...))
	e.lines = append(e.lines, line)
	if e.live != nil {
		fmt.Fprintln(e.live, line)
	}
}

// down notes that a builder can take no build from now on.
func (e *events) down(builder, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.outages[builder] = append(e.outages[builder], outage{from: time.Now()})
	e.add("%s: %s", builder, why)
}

// up notes the end of the builder's outage.
func (e *events) up(builder, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if all := e.outages[builder]; len(all) > 0 {
		all[len(all)-1].to = time.Now()
	}
	e.add("%s: %s", builder, why)
}

// allDown returns for how long, up to the time given, every one of the builders
// has been down; zero if one was not.
func (e *events) allDown(builders []string, at time.Time) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	var shortest time.Duration
	for i, builder := range builders {
		var since time.Duration
		for _, o := range e.outages[builder] {
			if o.from.Before(at) && (o.to.IsZero() || o.to.After(at)) {
				since = at.Sub(o.from)
			}
		}
		if i == 0 || since < shortest {
			shortest = since
		}
	}
	return shortest
}

// String is the whole log.
func (e *events) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.lines, "\n") + "\n"
}
