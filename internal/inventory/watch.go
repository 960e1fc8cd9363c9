// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package inventory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
)

// Defaults of WatchOptions.
const (
	defaultDebounce = 100 * time.Millisecond
	defaultPoll     = 30 * time.Second
)

// WatchOptions say how a file is watched. The zero value is useful.
type WatchOptions struct {
	// Logger is told of every version of the file; nil for silence.
	Logger *slog.Logger
	// OnRead is called, in the order of things and never at the same time
	// twice, when what the file gives has changed: a new version, a new
	// mistake in it, or its absence. It must return soon.
	OnRead func(Outcome)
	// File is for a machines file.
	File FileOptions
	// Debounce is how long to wait after a change for those that belong to
	// it; 100 ms if 0. A file that changes all the time is still read once in
	// that time.
	Debounce time.Duration
	// Poll is how often the file is read without having been told of a
	// change, because some file systems tell of none; 30 s if 0.
	Poll time.Duration
}

// Outcome is what came of reading the file.
type Outcome struct {
	// Document is what the file gives; that of the last good version where
	// Err is set.
	Document Document
	// Unusable are the lines of a machines file that were left out.
	Unusable []Unusable
	// Err says why the present version cannot be used: a *machines.ParseError,
	// a *VersionError, or an error of the file system, fs.ErrNotExist while
	// there is no file.
	Err error
}

// Watch follows the file at path, which may hold a document or a machines
// file: the first byte, "{" or not, tells. The channel delivers a document
// whenever it differs from the one before. A slow receiver gets the newest
// one only. The channel is closed after ctx ends.
//
// A file that is not there yet is waited for, with its directory. A version
// that cannot be read changes nothing and is reported. Both ways to replace a
// file whole are noticed at once: a rename, and the switch of a symbolic link
// ..data by which the kubelet replaces all files of a ConfigMap.
func Watch(ctx context.Context, path string, opts WatchOptions) <-chan Document {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Debounce == 0 {
		opts.Debounce = defaultDebounce
	}
	if opts.Poll == 0 {
		opts.Poll = defaultPoll
	}
	f := &follower{
		opts:      opts,
		log:       opts.Logger.With("file", path),
		documents: make(chan Document),
		read:      func() reading { return readFile(path, opts.File) },
		watched:   func([]string) {},
	}
	go func() {
		defer close(f.documents)
		changes := make(chan struct{}, 1)
		notifier, err := fsnotify.NewWatcher()
		if err != nil {
			f.log.Warn("Cannot be told of changes, looking for them at intervals", "interval", opts.Poll, "error", err)
			f.run(ctx, changes)
			return
		}
		n := &notifications{watcher: notifier, changes: changes}
		// Before the first reading, so that no change falls in between.
		n.watch([]string{path})
		f.watched = n.watch
		var notifying sync.WaitGroup
		notifying.Go(func() { n.run(ctx) })
		f.run(ctx, changes)
		notifying.Wait()
	}()
	return f.documents
}

// follower reads the file when it has changed and delivers what is new.
type follower struct {
	opts      WatchOptions
	log       *slog.Logger
	documents chan Document
	read      func() reading
	// watched is told, after each reading, of all files that took part.
	watched func(paths []string)

	last    Outcome
	started bool
	pending *Document
}

// reading is an outcome before it is known whether it is news.
type reading struct {
	outcome Outcome
	paths   []string
}

// run ends when ctx does.
func (f *follower) run(ctx context.Context, changes <-chan struct{}) {
	poll := time.NewTicker(f.opts.Poll)
	defer poll.Stop()
	var settled <-chan time.Time
	f.load()
	for {
		var deliver chan<- Document
		var document Document
		if f.pending != nil {
			deliver, document = f.documents, *f.pending
		}
		select {
		case <-ctx.Done():
			return
		case <-changes:
			// The first change starts the clock and no later one sets it
			// back, so that a busy file is read all the same.
			if settled == nil {
				settled = time.After(f.opts.Debounce)
			}
		case <-settled:
			settled = nil
			f.load()
		case <-poll.C:
			f.load()
		case deliver <- document:
			f.pending = nil
		}
	}
}

// load reads the file and keeps what is news.
func (f *follower) load() {
	now := f.read()
	f.watched(now.paths)
	outcome := now.outcome
	if outcome.Err != nil {
		outcome.Document, outcome.Unusable = f.last.Document, f.last.Unusable
	}
	if f.started && same(outcome, f.last) {
		return
	}
	if outcome.Err == nil && (f.last.Document.SchemaVersion == 0 || !reflect.DeepEqual(outcome.Document, f.last.Document)) {
		f.pending = &outcome.Document
	}
	f.last, f.started = outcome, true
	f.tell(outcome)
	if f.opts.OnRead != nil {
		f.opts.OnRead(outcome)
	}
}

func (f *follower) tell(outcome Outcome) {
	switch {
	case errors.Is(outcome.Err, fs.ErrNotExist) && outcome.Document.SchemaVersion == 0:
		f.log.Info("Waiting for the list of builders to appear")
	case outcome.Err != nil && outcome.Document.SchemaVersion == 0:
		f.log.Error("The list of builders cannot be used, and there has been no good one yet", "error", outcome.Err)
	case outcome.Err != nil:
		f.log.Error("Kept the last good list of builders", "endpoints", len(outcome.Document.Builders), "error", outcome.Err)
	default:
		f.log.Info("Read the list of builders", "endpoints", len(outcome.Document.Builders))
		for _, line := range outcome.Unusable {
			f.log.Warn("Left out a machine", "line", line.Origin.String(), "uri", line.URI, "reason", line.Reason)
		}
	}
}

// same reports whether two outcomes are the same news.
func same(a, b Outcome) bool {
	if (a.Err == nil) != (b.Err == nil) || a.Err != nil && a.Err.Error() != b.Err.Error() {
		return false
	}
	return reflect.DeepEqual(a.Document, b.Document) && reflect.DeepEqual(a.Unusable, b.Unusable)
}

// readFile reads the file and what it includes.
func readFile(path string, opts FileOptions) reading {
	result := reading{paths: []string{path}}
	text, err := readLimited(path)
	if err != nil {
		result.outcome.Err = err
		return result
	}
	if strings.HasPrefix(strings.TrimLeft(string(text), " \t\r\n"), "{") {
		result.outcome.Document, result.outcome.Err = Decode(text)
		return result
	}
	list, err := machines.Parse(path, text, machines.ParseOptions{Include: func(include string) ([]byte, error) {
		if !filepath.IsAbs(include) {
			return nil, errors.New("only absolute paths can be included")
		}
		result.paths = append(result.paths, include)
		return readLimited(include)
	}})
	if err != nil {
		result.outcome.Err = err
		return result
	}
	result.outcome.Document, result.outcome.Unusable = FromMachines(list, opts)
	return result
}

// readLimited reads a regular file; opening or reading a pipe could take for
// ever.
func readLimited(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(file, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, MaxSize)
	}
	return text, nil
}
