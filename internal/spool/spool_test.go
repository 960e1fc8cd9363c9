// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func newStore(t *testing.T, limit int64) *Store {
	t.Helper()
	s, err := Open(Options{Dir: filepath.Join(t.TempDir(), "spool"), MaxBytes: limit, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// content returns a path info and its NAR of size bytes. The spool does not look
// into NARs, so any bytes do.
func content(name string, size int) (daemon.PathInfo, []byte) {
	nar := bytes.Repeat([]byte(name[:1]), size)
	return daemon.PathInfo{Path: "/nix/store/" + name, NARHash: daemontest.Hash(nar), NARSize: uint64(size)}, nar
}

// put adds a NAR of size bytes and returns its pin.
func put(t *testing.T, s *Store, name string, size int) *Pin {
	t.Helper()
	info, nar := content(name, size)
	return putNAR(t, s, info, nar)
}

func putNAR(tb testing.TB, s *Store, info daemon.PathInfo, nar []byte) *Pin {
	tb.Helper()
	w, err := s.Create(info)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(nar); err != nil {
		tb.Fatal(err)
	}
	pin, err := w.Commit()
	if err != nil {
		tb.Fatal(err)
	}
	return pin
}

func has(s *Store, name string) bool {
	pin, ok := s.Pin("/nix/store/" + name)
	if ok {
		pin.Release()
	}
	return ok
}

func files(t *testing.T, s *Store) int {
	t.Helper()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestPutAndRead(t *testing.T) {
	t.Parallel()
	s := newStore(t, 100)
	pin := put(t, s, "a", 10)
	defer pin.Release()
	if has(s, "b") {
		t.Error("the spool has what nobody put there")
	}
	again, ok := s.Pin("/nix/store/a")
	if !ok {
		t.Fatal("the spool does not have what was put there")
	}
	defer again.Release()
	f, err := again.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || string(got) != strings.Repeat("a", 10) {
		t.Errorf("read %q, %v", got, err)
	}
	if want := (Usage{Paths: 1, Pinned: 1, Bytes: 10, MaxBytes: 100}); s.Usage() != want {
		t.Errorf("usage = %+v, want %+v", s.Usage(), want)
	}
}

func TestNothingIsVisibleBeforeCommit(t *testing.T) {
	t.Parallel()
	s := newStore(t, 100)
	info, nar := content("a", 10)
	w, err := s.Create(info)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(nar); err != nil {
		t.Fatal(err)
	}
	if has(s, "a") {
		t.Error("visible before Commit")
	}
	w.Abort()
	w.Abort()
	if u := s.Usage(); u.Bytes != 0 || has(s, "a") || files(t, s) != 0 {
		t.Errorf("after Abort: %+v, %d files", u, files(t, s))
	}
}

func TestWrongContentIsRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		write string
		want  string
	}{
		"short": {"aaa", "3 bytes instead of 10"},
		"long":  {strings.Repeat("a", 11), "more than 10 bytes"},
		"other": {strings.Repeat("b", 10), "their hash is sha256:"},
		"none":  {"", "0 bytes instead of 10"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, 100)
			info, _ := content("a", 10)
			w, err := s.Create(info)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			_, err = io.WriteString(w, tc.write)
			if err == nil {
				_, err = w.Commit()
			}
			var mismatch *MismatchError
			if !errors.As(err, &mismatch) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want a *MismatchError with %q", err, tc.want)
			}
			w.Abort()
			if u := s.Usage(); u.Bytes != 0 || files(t, s) != 0 {
				t.Errorf("left over: %+v, %d files", u, files(t, s))
			}
		})
	}
}

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	t.Parallel()
	s := newStore(t, 30)
	for _, name := range []string{"a", "b", "c"} {
		put(t, s, name, 10).Release()
	}
	if !has(s, "a") { // a use
		t.Fatal("a is gone")
	}
	put(t, s, "d", 15).Release()
	for name, want := range map[string]bool{"a": true, "b": false, "c": false, "d": true} {
		if got := has(s, name); got != want {
			t.Errorf("has %s: %v, want %v", name, got, want)
		}
	}
	if n := files(t, s); n != 2 {
		t.Errorf("%d files, want 2", n)
	}
}

func TestNoRoom(t *testing.T) {
	t.Parallel()
	s := newStore(t, 30)
	pin := put(t, s, "a", 20)
	put(t, s, "b", 10).Release()
	for _, size := range []int{11, 31} {
		info, _ := content("c", size)
		if _, err := s.Create(info); !errors.Is(err, ErrNoRoom) {
			t.Errorf("%d bytes: error = %v, want ErrNoRoom", size, err)
		}
	}
	if !has(s, "b") {
		t.Error("b was evicted although that made no room")
	}
	huge, _ := content("h", 1)
	huge.NARSize = 1 << 63
	if _, err := s.Create(huge); !errors.Is(err, ErrNoRoom) {
		t.Errorf("huge: error = %v, want ErrNoRoom", err)
	}
	pin.Release()
	pin.Release()
	put(t, s, "c", 25).Release()
	if has(s, "a") || has(s, "b") {
		t.Error("a and b are still there")
	}
}

func TestReservationCounts(t *testing.T) {
	t.Parallel()
	s := newStore(t, 30)
	info, _ := content("a", 20)
	w, err := s.Create(info)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := content("b", 20)
	if _, err := s.Create(other); !errors.Is(err, ErrNoRoom) {
		t.Errorf("error = %v, want ErrNoRoom while the first is being written", err)
	}
	w.Abort()
	put(t, s, "b", 20).Release()
}

func TestFirstOfTwoWins(t *testing.T) {
	t.Parallel()
	s := newStore(t, 100)
	info, nar := content("a", 10)
	w, err := s.Create(info)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", 10).Release()
	if _, err := w.Write(nar); err != nil {
		t.Fatal(err)
	}
	pin, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	pin.Release()
	if u := s.Usage(); u.Paths != 1 || u.Bytes != 10 || files(t, s) != 1 {
		t.Errorf("%+v, %d files, want one path", u, files(t, s))
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keep := filepath.Join(dir, "not-ours")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	opts := Options{Dir: dir, MaxBytes: 10, Logger: slog.New(slog.DiscardHandler)}
	if err := os.MkdirAll(filepath.Join(dir, dataName, "left"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	if n := files(t, s); n != 0 {
		t.Errorf("%d files are left of an earlier process", n)
	}
	if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), "another process uses") || strings.Contains(err.Error(), "unavailable") {
		t.Errorf("second Open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(opts); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Errorf("another file in the directory is gone: %v", err)
	}
	if _, err := Open(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "must be positive") {
		t.Errorf("Open without a limit: %v", err)
	}
}

func TestOpenLeavesOtherDirectoriesAlone(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		entry string
		ok    bool
	}{
		"other files":          {entry: "passwd"},
		"an empty volume":      {entry: lostAndFound, ok: true},
		"a spool's lock":       {entry: lockName, ok: true},
		"a killed spool":       {entry: dataName, ok: true},
		"hidden configuration": {entry: ".config"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var err error
			if path := filepath.Join(dir, tc.entry); tc.entry == lockName {
				err = os.WriteFile(path, nil, 0o600)
			} else {
				err = os.Mkdir(path, 0o700)
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err := Open(Options{Dir: dir, MaxBytes: 10, Logger: slog.New(slog.DiscardHandler)})
			if tc.ok {
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "such as "+tc.entry) {
				t.Errorf("error = %v, want one about %s", err, tc.entry)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Errorf("the directory has %v, %v", entries, err)
			}
		})
	}
}

func TestUnderLoad(t *testing.T) {
	t.Parallel()
	s := newStore(t, 200)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 50 {
				name := fmt.Sprintf("%c%d", 'a'+byte((i+j)%20), 1)
				pin, ok := s.Pin("/nix/store/" + name)
				if !ok {
					info, nar := content(name, 10+(i+j)%20)
					w, err := s.Create(info)
					if errors.Is(err, ErrNoRoom) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := w.Write(nar); err != nil {
						t.Error(err)
					}
					if pin, err = w.Commit(); err != nil {
						t.Error(err)
						return
					}
				}
				f, err := pin.Open()
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(f)
				if err != nil || daemontest.Hash(got) != pin.Info().NARHash {
					t.Errorf("%s: wrong content, %v", name, err)
				}
				f.Close()
				pin.Release()
			}
		})
	}
	wg.Wait()
	u := s.Usage()
	if u.Bytes > 200 || u.Paths != files(t, s) {
		t.Errorf("%+v, %d files", u, files(t, s))
	}
}

func BenchmarkPut(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir(), MaxBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	info, nar := content("a", 1000)
	for i := 0; b.Loop(); i++ {
		info.Path = fmt.Sprint("/nix/store/", i)
		putNAR(b, s, info, nar).Release()
	}
}
