// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// screen is what the person sees. It says that something is still going on
// whenever nothing has been printed for two seconds.
type screen struct {
	out   io.Writer
	began time.Time

	mu       sync.Mutex
	last     time.Time // when something was printed last
	partial  bool      // the last byte was not a line end
	reminded bool      // the last line said only that something goes on
	steps    int
	watches  []*watch
}

// quiet is how long nothing is printed before the screen says what goes on,
// stillQuiet how long after it has said so.
const (
	quiet      = 2 * time.Second
	stillQuiet = 5 * time.Second
)

// age is how long the demo has been running.
func (s *screen) age() time.Duration { return time.Since(s.began) }

func newScreen(out io.Writer) *screen {
	now := time.Now()
	return &screen{out: out, began: now, last: now}
}

// Write shows the output of a command, indented.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range bytes.Lines(p) {
		if !s.partial {
			fmt.Fprint(s.out, "    ")
		}
		if _, err := s.out.Write(line); err != nil {
			return 0, err
		}
		s.partial = line[len(line)-1] != '\n'
	}
	s.last, s.reminded = time.Now(), false
	return len(p), nil
}

// step begins a new part of the demo.
func (s *screen) step(title string) {
	s.mu.Lock()
	s.steps++
	number := s.steps
	s.mu.Unlock()
	s.line(fmt.Sprintf("\n── %d. %s  (%.0f s)", number, title, s.age().Seconds()))
}

// say shows a remark of the demo itself.
func (s *screen) say(format string, args ...any) { s.line("  " + fmt.Sprintf(format, args...)) }

// command shows a command line as typed.
func (s *screen) command(line string) { s.line("  $ " + line) }

func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.partial {
		fmt.Fprintln(s.out)
		s.partial = false
	}
	fmt.Fprintln(s.out, text)
	s.last, s.reminded = time.Now(), false
}

// watch says from time to time that what is still going on, while nothing else
// is printed, until the returned function is called. Of several watches the
// newest one speaks.
func (s *screen) watch(what string) (stop func()) {
	w := &watch{what: what, began: time.Now()}
	done, finished := make(chan struct{}), make(chan struct{})
	s.mu.Lock()
	s.watches = append(s.watches, w)
	s.mu.Unlock()
	go func() {
		defer close(finished)
		ticker := time.NewTicker(quiet / 4)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				s.remind(w)
			}
		}
	}()
	return func() {
		close(done)
		<-finished
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watches = slices.DeleteFunc(s.watches, func(other *watch) bool { return other == w })
	}
}

// watch is something that goes on.
type watch struct {
	what  string
	began time.Time
}

// remind says that the watch goes on, if it is time for that.
func (s *screen) remind(w *watch) {
	s.mu.Lock()
	wait := quiet
	if s.reminded {
		wait = stillQuiet
	}
	overdue := s.watches[len(s.watches)-1] == w && time.Since(s.last) >= wait
	s.mu.Unlock()
	if !overdue {
		return
	}
	s.say("… %s (%.0f s)", firstWords(w.what), time.Since(w.began).Seconds())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reminded = true
}

// firstWords shortens a command line for a remark.
func firstWords(line string) string {
	line, _, _ = strings.Cut(line, "\n")
	if runes := []rune(line); len(runes) > 60 {
		return string(runes[:60]) + "…"
	}
	return line
}
