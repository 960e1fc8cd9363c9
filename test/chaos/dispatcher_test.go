// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/statuspage"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// dispatcher is the program under test.
type dispatcher struct {
	volume, spool string
	log           *logbook

	command *exec.Cmd
	status  string // address of its status page
	metrics string // address of its metrics
	done    chan struct{}
	err     error // how it has ended; valid once done is closed
}

// startDispatcher starts a dispatcher on the world's builders file and returns once
// its clients can begin.
func startDispatcher(ctx context.Context, w *world, flags ...string) (*dispatcher, error) {
	programs := os.Getenv(programsVariable)
	d := &dispatcher{
		volume: filepath.Join(w.dir, "volume"), spool: filepath.Join(w.dir, "spool"),
		status: "127.0.0.1:9463", metrics: "127.0.0.1:9464",
		log: &logbook{}, done: make(chan struct{}),
	}
	d.command = exec.Command(filepath.Join(programs, "nix-dispatcher"), append([]string{
		"--builders=" + w.roster.file, "--keys-dir=" + w.roster.keys,
		"--volume=" + d.volume, "--client-path=" + nixlab.VolumePath, "--spool-dir=" + d.spool,
		"--status-address=" + d.status, "--metrics-address=" + d.metrics,
		"--log-format=json", "--log-level=debug",
	}, flags...)...)
	d.command.Stderr = d.log
	d.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.command.Start(); err != nil {
		return nil, fmt.Errorf("start the dispatcher: %w", err)
	}
	go func() {
		defer close(d.done)
		d.err = d.command.Wait()
	}()
	return d, eventually(ctx, patience, "the dispatcher to be ready", func() error {
		return run(ctx, filepath.Join(programs, "nix-dispatcher"), "ready", "--volume="+d.volume)
	})
}

// stop ends the dispatcher in an orderly way, if it has not ended.
func (d *dispatcher) stop() error {
	_ = d.command.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.done:
		return d.err
	case <-time.After(patience):
		_ = d.command.Process.Kill()
		<-d.done
		return fmt.Errorf("the dispatcher had not ended %v after SIGTERM", patience)
	}
}

// get reads a page of the dispatcher.
func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, response.Status)
	}
	return text, err
}

// state is the dispatcher's own view.
func (d *dispatcher) state(ctx context.Context) (statuspage.Document, error) {
	var status statuspage.Document
	text, err := get(ctx, "http://"+d.status+"/status.json")
	if err != nil {
		return status, err
	}
	return status, json.Unmarshal(text, &status)
}

// metric is the sum of the dispatcher's metrics whose name and labels match.
func (d *dispatcher) metric(ctx context.Context, pattern string) (int, error) {
	text, err := get(ctx, "http://"+d.metrics+"/metrics")
	if err != nil {
		return 0, err
	}
	found := regexp.MustCompile("(?m)^"+pattern+" (.*)$").FindAllSubmatch(text, -1)
	if found == nil {
		return 0, fmt.Errorf("the dispatcher has no metric %s", pattern)
	}
	sum := 0.0
	for _, match := range found {
		value, err := strconv.ParseFloat(string(match[1]), 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", pattern, err)
		}
		sum += value
	}
	return int(sum), nil
}

// usage is what the dispatcher's process holds, and to how many connections and
// sessions of builders it owns up.
type usage struct{ goroutines, files, sockets, connections, sessions int }

func (d *dispatcher) usage(ctx context.Context) (usage, error) {
	var u usage
	for pattern, value := range map[string]*int{
		"go_goroutines": &u.goroutines,
		`nix_dispatcher_builder_connections\{[^}]*\}`: &u.connections,
		`nix_dispatcher_builder_sessions\{[^}]*\}`:    &u.sessions,
	} {
		var err error
		if *value, err = d.metric(ctx, pattern); err != nil {
			return u, err
		}
	}
	dir := fmt.Sprintf("/proc/%d/fd", d.command.Process.Pid)
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		target, _ := os.Readlink(filepath.Join(dir, entry.Name())) // closed meanwhile: neither
		switch {
		case strings.HasPrefix(target, "socket:"):
			u.sockets++
		case strings.HasPrefix(target, "/"):
			u.files++
		}
	}
	return u, err
}

// Messages of the dispatcher's log.
const (
	builtMessage = "Built"
	phaseMessage = "Build enters a phase"
	lostMessage  = "Builder was lost during a build"
)

// record is a line of the dispatcher's log.
type record struct {
	Time       time.Time `json:"time"`
	Message    string    `json:"msg"`
	Derivation string    `json:"drv"`
	Builder    string    `json:"builder"`
	Phase      string    `json:"phase"`
}

// logbook collects the dispatcher's log and tells others of what is in it.
type logbook struct {
	mu       sync.Mutex
	text     strings.Builder
	rest     string
	records  []record
	watchers map[int]func(record)
}

// Write implements io.Writer.
func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	l.rest += string(p)
	for {
		line, rest, whole := strings.Cut(l.rest, "\n")
		if !whole {
			return len(p), nil
		}
		l.rest = rest
		var r record
		if json.Unmarshal([]byte(line), &r) != nil {
			continue // the trace of a panic, perhaps
		}
		l.records = append(l.records, r)
		for _, watch := range l.watchers {
			watch(r)
		}
	}
}

// watch has f called with every record until stop is called. It must not block.
func (l *logbook) watch(f func(record)) (stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watchers == nil {
		l.watchers = map[int]func(record){}
	}
	key := len(l.records)
	for l.watchers[key] != nil {
		key++
	}
	l.watchers[key] = f
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.watchers, key)
	}
}

// phasesOf returns the moves of a build from phase to phase, as they happen, until
// stop is called.
func (l *logbook) phasesOf(name string) (moves <-chan record, stop func()) {
	found := make(chan record, 100) // more than a build has
	return found, l.watch(func(r record) {
		if r.Message == phaseMessage && derivationName(r.Derivation) == name {
			select {
			case found <- r:
			default:
			}
		}
	})
}

// since returns the records from the time on.
func (l *logbook) since(at time.Time) []record {
	l.mu.Lock()
	defer l.mu.Unlock()
	var recent []record
	for _, r := range l.records {
		if !r.Time.Before(at) {
			recent = append(recent, r)
		}
	}
	return recent
}

// String is the whole log.
func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
