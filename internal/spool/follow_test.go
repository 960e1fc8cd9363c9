// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package spool

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"go.uber.org/goleak"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// begin starts a NAR of random bytes and a follower of it.
func begin(t *testing.T, s *Store, size int) (*Writer, io.ReadCloser, []byte) {
	t.Helper()
	nar := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(nar)
	info := daemon.PathInfo{Path: "/nix/store/a", NARHash: daemontest.Hash(nar), NARSize: uint64(size)}
	w, err := s.Create(info)
	if err != nil {
		t.Fatal(err)
	}
	f, err := w.Follow()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(); w.Abort() })
	return w, f, nar
}

// write writes nar in pieces of up to size bytes, with a pause after each.
func write(t *testing.T, w *Writer, nar []byte, size int, pause func()) {
	t.Helper()
	for len(nar) > 0 {
		n := min(size, len(nar))
		if _, err := w.Write(nar[:n]); err != nil {
			t.Error(err)
			return
		}
		nar = nar[n:]
		pause()
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	none := func() {}
	tests := map[string]struct {
		pieces int
		pause  func()
		// slowly is how a follower reads.
		slowly func(io.Reader) io.Reader
	}{
		"at once":           {1 << 20, none, nil},
		"a faster reader":   {999, synctest.Wait, nil},
		"a slower reader":   {1 << 16, none, iotest.HalfReader},
		"byte by byte":      {1 << 12, none, iotest.OneByteReader},
		"in unequal pieces": {1001, none, func(r io.Reader) io.Reader { return iotest.DataErrReader(r) }},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, f, nar := begin(t, newStore(t, 1<<20), 100_000)
				var readers sync.WaitGroup
				follow := func(f io.ReadCloser) {
					var r io.Reader = f
					if tc.slowly != nil {
						r = tc.slowly(r)
					}
					got, err := io.ReadAll(r)
					if err != nil || !bytes.Equal(got, nar) {
						t.Errorf("read %d bytes, %v", len(got), err)
					}
				}
				readers.Go(func() { follow(f) })
				write(t, w, nar[:50_000], tc.pieces, tc.pause)
				late, err := w.Follow()
				if err != nil {
					t.Fatal(err)
				}
				defer late.Close()
				readers.Go(func() { follow(late) })
				write(t, w, nar[50_000:], tc.pieces, tc.pause)
				pin, err := w.Commit()
				if err != nil {
					t.Fatal(err)
				}
				defer pin.Release()
				readers.Wait()
			})
		})
	}
}

// The end of a NAR is its end for followers only when it was found to be good.
func TestFollowersHearHowItEnds(t *testing.T) {
	t.Parallel()
	mismatch := func(err error) bool { _, ok := errors.AsType[*MismatchError](err); return ok }
	aborted := func(err error) bool { return errors.Is(err, ErrAborted) }
	commit := func(w *Writer) error { _, err := w.Commit(); return err }
	tests := map[string]struct {
		write func(nar []byte) []byte
		end   func(*Writer) error
		want  func(error) bool
	}{
		"aborted":          {func(nar []byte) []byte { return nar }, func(w *Writer) error { w.Abort(); return nil }, aborted},
		"aborted early":    {func([]byte) []byte { return nil }, func(w *Writer) error { w.Abort(); return nil }, aborted},
		"wrong hash":       {func(nar []byte) []byte { return append([]byte{nar[0] ^ 1}, nar[1:]...) }, commit, mismatch},
		"too short":        {func(nar []byte) []byte { return nar[:10] }, commit, mismatch},
		"too long":         {func(nar []byte) []byte { return nar }, func(w *Writer) error { _, err := w.Write([]byte("x")); return err }, mismatch},
		"disk is full":     {func(nar []byte) []byte { return nar[:10] }, failWrite, func(err error) bool { return errors.Is(err, os.ErrClosed) }},
		"file is not kept": {func(nar []byte) []byte { return nar }, failCommit, func(err error) bool { return errors.Is(err, os.ErrClosed) }},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, f, nar := begin(t, newStore(t, 1<<20), 100)
				ended := make(chan error)
				go func() {
					_, err := io.Copy(io.Discard, f)
					ended <- err
				}()
				write(t, w, tc.write(nar), 10, synctest.Wait)
				if err := tc.end(w); err != nil && !tc.want(err) {
					t.Errorf("the writer's error: %v", err)
				}
				if err := <-ended; err == nil || !tc.want(err) {
					t.Errorf("the follower's error: %v", err)
				}
				if late, err := w.Follow(); err == nil || !tc.want(err) {
					t.Errorf("a late follower: %v, %v", late, err)
				}
				w.Abort()
				if n := files(t, w.store); n != 0 || w.store.Usage().Bytes != 0 {
					t.Errorf("left over: %d files, %+v", n, w.store.Usage())
				}
			})
		})
	}
}

// failWrite makes a write fail as a full disk does.
func failWrite(w *Writer) error {
	_ = w.file.Close()
	_, err := w.Write([]byte("x"))
	return err
}

// failCommit makes closing the file fail as some file systems do.
func failCommit(w *Writer) error {
	_ = w.file.Close()
	_, err := w.Commit()
	return err
}

// A follower has all of the NAR, whatever becomes of it in the spool.
func TestFollowersOutliveTheEntry(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		end   func(*testing.T, *Store, *Writer)
		after error
	}{
		"evicted": {func(t *testing.T, s *Store, w *Writer) {
			pin, err := w.Commit()
			if err != nil {
				t.Fatal(err)
			}
			pin.Release()
			put(t, s, "b", 1000).Release()
			if has(s, "a") {
				t.Error("a is still there")
			}
		}, ErrAborted},
		"somebody was faster": {func(t *testing.T, s *Store, w *Writer) {
			again, err := s.Create(w.info)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(again, bytes.NewReader(mustRead(t, w.file.Name()))); err != nil {
				t.Fatal(err)
			}
			for _, w := range []*Writer{again, w} {
				pin, err := w.Commit()
				if err != nil {
					t.Fatal(err)
				}
				pin.Release()
			}
		}, ErrAborted},
		"kept": {func(t *testing.T, _ *Store, w *Writer) {
			pin, err := w.Commit()
			if err != nil {
				t.Fatal(err)
			}
			pin.Release()
		}, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, 1000)
			w, f, nar := begin(t, s, 100)
			write(t, w, nar, 100, func() {})
			tc.end(t, s, w)
			got, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(got, nar) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
			late, err := w.Follow()
			if !errors.Is(err, tc.after) {
				t.Errorf("a late follower: %v, want %v", err, tc.after)
			}
			if err == nil {
				late.Close()
			}
		})
	}
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestCloseEndsAReadThatWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, f, nar := begin(t, newStore(t, 1<<20), 100)
		write(t, w, nar[:50], 50, func() {})
		ended := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, f)
			ended <- err
		}()
		synctest.Wait()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, os.ErrClosed) {
			t.Errorf("error = %v", err)
		}
		if err := f.Close(); err != nil {
			t.Errorf("the second Close: %v", err)
		}
		if n, err := f.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrClosed) {
			t.Errorf("a read after Close: %d, %v", n, err)
		}
	})
}

// A file that somebody has cut is no reason to turn in circles.
func TestFollowACutFile(t *testing.T) {
	t.Parallel()
	w, f, nar := begin(t, newStore(t, 1<<20), 100)
	write(t, w, nar, 100, func() {})
	if err := os.Truncate(w.file.Name(), 10); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f); len(got) != 10 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if n, err := f.Read(nil); n != 0 || err != nil {
		t.Errorf("a read of nothing: %d, %v", n, err)
	}
}
