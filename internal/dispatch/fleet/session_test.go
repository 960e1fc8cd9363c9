// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

const (
	pathA = "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a"
	pathB = "/nix/store/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-b"
	drvC  = "/nix/store/cccccccccccccccccccccccccccccccc-c.drv"
	pathC = "/nix/store/cccccccccccccccccccccccccccccccc-c"
)

// one returns a source of one path.
func one(info daemon.PathInfo, r io.Reader) daemon.PathSource {
	return daemon.PathSource{Count: 1, Next: func() (daemon.PathInfo, io.Reader, error) { return info, r, nil }}
}

func TestSessionOperations(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{Substitutes: []string{pathB}, Build: func(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
			return &daemon.BuildResult{Status: daemon.StatusPermanentFailure, ErrorMessage: b.DrvPath}
		}})
		f, _ := newFleet(t, m)
		s := open(t, f)
		defer s.Close()
		ctx := t.Context()
		info, nar := daemontest.FileInfo(pathA, []byte("hello"))
		if err := s.AddMultipleToStore(ctx, one(info, bytes.NewReader(nar)), nil); err != nil {
			t.Fatal(err)
		}
		if valid, err := s.QueryValidPaths(ctx, []string{pathA, pathB}, false, nil); err != nil || len(valid) != 1 || valid[0] != pathA {
			t.Errorf("QueryValidPaths = %v, %v", valid, err)
		}
		if found, err := s.QuerySubstitutablePaths(ctx, []string{pathA, pathB}); err != nil || len(found) != 1 || found[0] != pathB {
			t.Errorf("QuerySubstitutablePaths = %v, %v", found, err)
		}
		if got, valid, err := s.QueryPathInfo(ctx, pathA); err != nil || !valid || got.NARHash != info.NARHash {
			t.Errorf("QueryPathInfo = %+v, %v, %v", got, valid, err)
		}
		var out bytes.Buffer
		if err := s.NARFromPath(ctx, pathA, &out); err != nil || !bytes.Equal(out.Bytes(), nar) {
			t.Errorf("NARFromPath = %q, %v", out.Bytes(), err)
		}
		var lines int
		result, err := s.BuildOutputs(ctx, drvC, &daemon.BasicDerivation{}, func(daemon.Message) error { lines++; return nil }, daemon.Outputs{})
		if err != nil || result.ErrorMessage != drvC || lines == 0 {
			t.Errorf("BuildDerivation = %+v, %v after %d messages", result, err, lines)
		}
	})
}

func TestWhoseFaultItIs(t *testing.T) {
	ours := errors.New("our disk is full")
	info, nar := daemontest.FileInfo(pathA, bytes.Repeat([]byte("x"), 1<<20))
	failing := readerFunc(func([]byte) (int, error) { return 0, ours })
	tests := map[string]struct {
		daemon daemontest.Options
		call   func(ctx context.Context, s *Session) error
		remote bool // the daemon's own error
		lost   bool
		own    error
	}{
		"the daemon's answer": {
			daemon: daemontest.Options{Before: daemontest.At(1, daemontest.Refuse("no"))},
			call:   func(ctx context.Context, s *Session) error { _, _, err := s.QueryPathInfo(ctx, pathA); return err },
			remote: true,
		},
		"the daemon's end": {
			daemon: daemontest.Options{Before: daemontest.At(1, daemontest.HangUp)},
			call:   func(ctx context.Context, s *Session) error { _, _, err := s.QueryPathInfo(ctx, pathA); return err },
			lost:   true,
		},
		"the daemon's end in an upload": {
			daemon: daemontest.Options{Before: daemontest.At(1, daemontest.HangUp)},
			call: func(ctx context.Context, s *Session) error {
				return s.AddMultipleToStore(ctx, one(info, bytes.NewReader(nar)), nil)
			},
			lost: true,
		},
		"our sink": {
			call: func(ctx context.Context, s *Session) error {
				_, err := s.BuildOutputs(ctx, drvC, &daemon.BasicDerivation{}, func(daemon.Message) error { return ours }, daemon.Outputs{})
				return err
			},
			own: ours,
		},
		"our source": {
			call: func(ctx context.Context, s *Session) error {
				return s.AddMultipleToStore(ctx, daemon.PathSource{Count: 1, Next: func() (daemon.PathInfo, io.Reader, error) {
					return daemon.PathInfo{}, nil, ours
				}}, nil)
			},
			own: ours,
		},
		"our reader": {
			call: func(ctx context.Context, s *Session) error { return s.AddMultipleToStore(ctx, one(info, failing), nil) },
			own:  ours,
		},
		"our writer": {
			call: func(ctx context.Context, s *Session) error {
				return s.NARFromPath(ctx, pathB, writerFunc(func([]byte) (int, error) { return 0, ours }))
			},
			own: ours,
		},
		"our context": {
			daemon: daemontest.Options{Before: daemontest.At(1, daemontest.Silent)},
			call: func(ctx context.Context, s *Session) error {
				ctx, cancel := context.WithTimeoutCause(ctx, time.Second, ours)
				defer cancel()
				_, err := s.QueryValidPaths(ctx, []string{pathA}, false, nil)
				return err
			},
			own: ours,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := newMachine(t, tc.daemon)
				m.AddFile(pathB, []byte("b"))
				f, n := newFleet(t, m)
				s := open(t, f)
				defer s.Close()
				err := tc.call(t.Context(), s)
				var l *LostError
				var remote *daemon.RemoteError
				if errors.As(err, &l) != tc.lost {
					t.Errorf("error = %v, lost: want %v", err, tc.lost)
				}
				if errors.As(err, &remote) != tc.remote {
					t.Errorf("error = %v, remote: want %v", err, tc.remote)
				}
				if tc.own != nil && !errors.Is(err, tc.own) {
					t.Errorf("error = %v, want %v", err, tc.own)
				}
				if tc.lost && !strings.Contains(err.Error(), "b/one") {
					t.Errorf("error %q does not name the builder", err)
				}
				// The connection is alive, so the builder is not down.
				if down := n.down(t, "b/one"); down != "" {
					t.Errorf("the builder is %q", down)
				}
			})
		})
	}
}

func TestSilentDaemonIsDown(t *testing.T) {
	info, nar := daemontest.FileInfo(pathA, []byte("x"))
	tests := map[string]struct {
		call func(ctx context.Context, s *Session) error
		want time.Duration
	}{
		"question": {
			func(ctx context.Context, s *Session) error {
				_, err := s.QueryValidPaths(ctx, []string{pathA}, false, nil)
				return err
			}, answerTimeout,
		},
		"upload": {
			func(ctx context.Context, s *Session) error {
				return s.AddMultipleToStore(ctx, one(info, bytes.NewReader(nar)), nil)
			}, stallTimeout,
		},
		"question with substitution": {
			func(ctx context.Context, s *Session) error {
				_, err := s.QueryValidPaths(ctx, []string{pathA}, true, nil)
				return err
			}, fetchTimeout,
		},
		"large upload": {
			func(ctx context.Context, s *Session) error {
				const size = 10 * stallRate
				large := daemon.PathInfo{Path: pathA, NARHash: info.NARHash, NARSize: size}
				return s.AddMultipleToStore(ctx, one(large, io.LimitReader(zeros{}, size)), nil)
			}, stallTimeout + 10*time.Second,
		},
		"download": {
			func(ctx context.Context, s *Session) error { return s.NARFromPath(ctx, pathA, io.Discard) }, stallTimeout,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := newMachine(t, daemontest.Options{Before: daemontest.At(1, daemontest.Silent)})
				f, n := newFleet(t, m)
				s := open(t, f)
				defer s.Close()
				m.set(errCut) // no way back
				began := time.Now()
				err := tc.call(t.Context(), s)
				lost(t, err, errSilent)
				if took := time.Since(began); took != tc.want {
					t.Errorf("took %v, want %v", took, tc.want)
				}
				synctest.Wait()
				if down := n.down(t, "b/one"); down == "" {
					t.Error("the builder is not down")
				}
			})
		})
	}
}

// zeros is a reader without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestMessagesKeepTheWatchdogQuiet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		barked := make(chan time.Time, 1)
		dog := newWatchdog(time.Minute, func() { barked <- time.Now() })
		told := 0
		for _, sink := range []daemon.MessageSink{
			dog.sink(nil),
			dog.sink(func(daemon.Message) error { told++; time.Sleep(time.Hour); return io.EOF }),
		} {
			time.Sleep(59 * time.Second)
			_ = sink(daemon.Next{})
		}
		quiet := time.Now()
		if at := <-barked; at.Sub(quiet) != time.Minute || told != 1 {
			t.Errorf("it barked %v after the last message; %d messages were passed on", at.Sub(quiet), told)
		}
	})
}

func TestSlowSourceIsNotTheBuildersFault(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, _ := newFleet(t, newMachine(t, daemontest.Options{}))
		s := open(t, f)
		defer s.Close()
		info, nar := daemontest.FileInfo(pathA, []byte("x"))
		rest := bytes.NewReader(nar)
		slow := readerFunc(func(p []byte) (int, error) {
			time.Sleep(2 * stallTimeout)
			return rest.Read(p)
		})
		if err := s.AddMultipleToStore(t.Context(), one(info, slow), nil); err != nil {
			t.Error(err)
		}
	})
}

func TestDaemonThatDoesNotStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, daemontest.Options{})
		f, n := newFleet(t, m)
		defer open(t, f).Close() // takes the session of the first handshake
		m.broken = true
		_, err := f.Open(t.Context(), "b/one")
		lost(t, err, errDaemon)
		synctest.Wait()
		if down := n.down(t, "b/one"); down != "has no working nix-daemon" {
			t.Errorf("the builder is %q", down)
		}
	})
}

func TestBrief(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		err  error
		want string
	}{
		"ssh":    {fmt.Errorf("read: %w", &sshconn.Error{Kind: sshconn.KindLost, Address: "one:22"}), "connection lost"},
		"daemon": {fmt.Errorf("read: %w", io.ErrUnexpectedEOF), "its nix-daemon ended"},
		"silent": {errSilent, "no answer in time"},
	}
	for name, tc := range tests {
		if got := (&LostError{Builder: "b/one", Err: tc.err}).Brief(); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
