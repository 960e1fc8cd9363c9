// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package spool is a bounded store on disk of NARs and their path infos.
//
// A dispatcher keeps in it what clients upload and what their builds produce,
// so that a build can be moved to another builder without asking the client
// again. Every NAR is checked against its path info while it is written; a
// reader never sees a part of one. Space is reserved before the first byte is
// written, by evicting what was used least recently and is not pinned. What
// finds no room is refused with [ErrNoRoom] before a byte of it is consumed.
//
// The spool is a cache of one process: it starts empty and leaves nothing
// behind.
package spool

import (
	"container/list"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

const (
	// lockName is the file that keeps two processes from one directory.
	lockName = "lock"
	// dataName is the directory of the NARs. Only it is emptied, so that a
	// wrong setting cannot delete other files.
	dataName = "nars"
	// lostAndFound is in the root of a new file system.
	lostAndFound = "lost+found"
)

// ErrNoRoom means that a NAR does not fit, because it is larger than the whole
// spool or because what is there is in use.
var ErrNoRoom = errors.New("no room in the spool")

// Options configure a [Store].
type Options struct {
	// Dir is the spool's directory. It is created if need be, and what an
	// earlier process left in it is removed.
	Dir string
	// MaxBytes bounds the sum of the NAR sizes, written and being written.
	MaxBytes int64
	// Logger reports files that cannot be removed.
	Logger *slog.Logger
}

// Store is the spool. It is safe for concurrent use.
type Store struct {
	dir  string
	max  int64
	log  *slog.Logger
	lock *os.File

	mu      sync.Mutex
	entries map[string]*entry
	// unpinned orders the entries nobody uses, most recently used first.
	unpinned *list.List
	// used is the space of all entries and reservations in bytes.
	used int64
	// files counts the files ever made, to name them.
	files uint64
	// evictions, refusals and failures are those of Usage.
	evictions, refusals, failures uint64
}

// entry is one complete NAR.
type entry struct {
	info daemon.PathInfo
	file string
	pins int
	// place is the entry's element in unpinned, nil while it is pinned.
	place *list.Element
	// forgotten is set once the entry cannot be found any more.
	forgotten bool
}

// Usage says how full a spool is.
type Usage struct {
	// Paths is the number of complete NARs, Pinned how many of them are in use.
	Paths, Pinned int
	// Bytes is the space taken, that of unfinished NARs included.
	Bytes int64
	// MaxBytes is the limit.
	MaxBytes int64
	// Evictions, Refusals and Failures count, since Open, NARs that were dropped
	// for others, that found no room within MaxBytes, and that the file system did
	// not take.
	Evictions, Refusals, Failures uint64
}

// Open makes an empty spool in opts.Dir. It fails if another process uses the
// directory, or if it holds files but none of a spool.
func Open(opts Options) (*Store, error) {
	if opts.MaxBytes <= 0 {
		return nil, fmt.Errorf("open spool: its size limit is %d bytes: it must be positive", opts.MaxBytes)
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if err := checkOwn(opts.Dir); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(opts.Dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("open spool: another process uses %s: each needs a directory of its own", opts.Dir)
		}
		return nil, fmt.Errorf("open spool: lock %s: %w", lock.Name(), err)
	}
	s := &Store{
		dir:      filepath.Join(opts.Dir, dataName),
		max:      opts.MaxBytes,
		log:      opts.Logger,
		lock:     lock,
		entries:  map[string]*entry{},
		unpinned: list.New(),
	}
	if err := errors.Join(os.RemoveAll(s.dir), os.Mkdir(s.dir, 0o700)); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open spool: %w", err)
	}
	return s, nil
}

// checkOwn fails if dir holds what no spool has left there: then the setting is
// wrong, and nothing is written.
func checkOwn(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	stranger := ""
	for _, e := range entries {
		switch e.Name() {
		case lockName, dataName:
			return nil
		case lostAndFound:
		default:
			stranger = e.Name()
		}
	}
	if stranger != "" {
		return fmt.Errorf("%s holds other files, such as %s: name an empty directory", dir, stranger)
	}
	return nil
}

// Close removes everything. Pins and writers must be gone.
func (s *Store) Close() error {
	err := os.RemoveAll(s.dir)
	return errors.Join(err, s.lock.Close())
}

// Usage returns how full the spool is.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{
		Paths: len(s.entries), Pinned: len(s.entries) - s.unpinned.Len(), Bytes: s.used, MaxBytes: s.max,
		Evictions: s.evictions, Refusals: s.refusals, Failures: s.failures,
	}
}

// Pin returns the entry of a store path and keeps it from eviction until the
// pin is released. It reports false if the path is not in the spool.
func (s *Store) Pin(path string) (*Pin, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[path]
	if !ok {
		return nil, false
	}
	return s.pin(e), true
}

// pin hands out e. The lock is held.
func (s *Store) pin(e *entry) *Pin {
	if e.place != nil {
		s.unpinned.Remove(e.place)
		e.place = nil
	}
	e.pins++
	return &Pin{entry: e, release: sync.OnceFunc(func() { s.unpin(e) })}
}

func (s *Store) unpin(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.pins--; e.pins > 0 {
		return
	}
	if e.forgotten {
		s.discard(e)
		return
	}
	e.place = s.unpinned.PushFront(e)
}

// Forget drops the entry of a store path unless it has that NAR hash: the path has other
// content now. Those who have pinned the old one can go on reading it.
func (s *Store) Forget(path, unless string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[path]
	switch {
	case !ok || e.info.NARHash == unless:
	case e.pins == 0:
		s.evict(e)
	default:
		delete(s.entries, path)
		e.forgotten = true
	}
}

// reserve takes size bytes, evicting as much as needed, or nothing if that
// would not be enough. It returns the name of a new file.
func (s *Store) reserve(size int64) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	evictable := int64(0)
	for e := s.unpinned.Back(); e != nil && s.used-evictable > s.max-size; e = e.Prev() {
		evictable += int64(e.Value.(*entry).info.NARSize)
	}
	if size > s.max || s.used-evictable > s.max-size {
		s.refusals++
		return "", ErrNoRoom
	}
	for s.used > s.max-size {
		s.evict(s.unpinned.Back().Value.(*entry))
	}
	s.used += size
	s.files++
	return filepath.Join(s.dir, strconv.FormatUint(s.files, 36)), nil
}

// evict forgets an unpinned entry and removes its file. The lock is held.
func (s *Store) evict(e *entry) {
	s.unpinned.Remove(e.place)
	delete(s.entries, e.info.Path)
	s.evictions++
	s.discard(e)
}

// discard removes the file of an entry that nobody can find. The lock is held.
func (s *Store) discard(e *entry) {
	s.used -= int64(e.info.NARSize)
	s.remove(e.file)
}

// failed counts a failure of the file system.
func (s *Store) failed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures++
}

func (s *Store) unreserve(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= size
}

// insert makes a complete file visible. If the path is there already the older
// entry stays and is returned, as a Nix store would do.
func (s *Store) insert(info daemon.PathInfo, file string) (pin *Pin, inserted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.entries[info.Path]; ok {
		return s.pin(e), false
	}
	e := &entry{info: info, file: file}
	s.entries[info.Path] = e
	return s.pin(e), true
}

func (s *Store) remove(file string) {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("Spool file was not removed", "file", file, "error", err)
	}
}

// Pin is one use of an entry.
type Pin struct {
	entry   *entry
	release func()
}

// Info returns the path info.
func (p *Pin) Info() daemon.PathInfo { return p.entry.info }

// Open returns a reader of the NAR. It stays readable after the pin is
// released.
func (p *Pin) Open() (*os.File, error) {
	f, err := os.Open(p.entry.file)
	if err != nil {
		return nil, fmt.Errorf("read %s from the spool: %w", p.entry.info.Path, err)
	}
	return f, nil
}

// Release ends the use. Further calls do nothing.
func (p *Pin) Release() { p.release() }
