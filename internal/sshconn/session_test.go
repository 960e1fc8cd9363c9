// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// echo copies input to output, speaks on standard error and returns 3.
func echo(command string, stdio sshtest.Stdio) int {
	_, _ = fmt.Fprintf(stdio.Stderr, "running %s\n", command)
	_, _ = io.Copy(stdio.Stdout, stdio.Stdin)
	return 3
}

func start(tb testing.TB, conn *Conn, command string) *Session {
	tb.Helper()
	session, err := conn.Start(tb.Context(), command)
	if err != nil {
		tb.Fatalf("Start: %v", err)
	}
	tb.Cleanup(func() { _ = session.Close() })
	return session
}

func TestSession(t *testing.T) {
	t.Parallel()
	conn := dialWell(t, configFor(t, sshtest.New(t, sshtest.Behavior{Exec: echo})))
	session := start(t, conn, "cat 'x y'")
	// More than all windows and buffers on the way hold.
	sent := bytes.Repeat([]byte("0123456789abcdef"), 512<<10)
	var work sync.WaitGroup
	work.Go(func() {
		if _, err := session.Write(sent); err != nil {
			t.Errorf("Write: %v", err)
		}
		_ = session.CloseWrite()
	})
	got, err := io.ReadAll(session)
	work.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("read %d bytes of %d (%v)", len(got), len(sent), err)
	}
	status, err := session.Wait(t.Context())
	if err != nil || status != (ExitStatus{Code: 3}) || status.Success() {
		t.Errorf("Wait: %v, %v", status, err)
	}
	if got, want := session.Stderr(), "running cat 'x y'\n"; got != want {
		t.Errorf("stderr is %q, want %q", got, want)
	}
	if _, err := session.Write([]byte("x")); err == nil {
		t.Error("writing to a command that has ended succeeds")
	}
	_ = session.Close()
	if _, err := session.Read(make([]byte, 1)); KindOf(err) != KindClosed {
		t.Errorf("Read after Close: %v", err)
	}
}

func TestSessionsShareAConnection(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{Exec: echo})
	conn := dialWell(t, configFor(t, server))
	var work sync.WaitGroup
	for i := range 20 {
		work.Go(func() {
			session, err := conn.Start(t.Context(), "cat")
			if err != nil {
				t.Errorf("Start: %v", err)
				return
			}
			defer func() { _ = session.Close() }()
			want := strings.Repeat(fmt.Sprint(i), 1000)
			_, _ = io.WriteString(session, want)
			_ = session.CloseWrite()
			if got, err := io.ReadAll(session); err != nil || string(got) != want {
				t.Errorf("session %d: read %d bytes (%v)", i, len(got), err)
			}
		})
	}
	work.Wait()
	if server.Accepted() != 1 {
		t.Errorf("%d connections", server.Accepted())
	}
}

func TestStderrIsATail(t *testing.T) {
	t.Parallel()
	conn := dialWell(t, configFor(t, sshtest.New(t, sshtest.Behavior{
		Exec: func(_ string, stdio sshtest.Stdio) int {
			for i := range 5000 {
				_, _ = fmt.Fprintf(stdio.Stderr, "line %d\n", i)
			}
			return 0
		},
	})))
	session := start(t, conn, "x")
	if status, err := session.Wait(t.Context()); err != nil || !status.Success() {
		t.Fatalf("Wait: %v, %v", status, err)
	}
	got := session.Stderr()
	if len(got) != stderrTail || !strings.HasSuffix(got, "line 4999\n") {
		t.Errorf("kept %d bytes ending in %q", len(got), got[max(0, len(got)-20):])
	}
	session.stderr = tail{}
	_, _ = session.stderr.Write(bytes.Repeat([]byte("x"), 2*stderrTail))
	if n := len(session.Stderr()); n != stderrTail {
		t.Errorf("kept %d bytes of one long write", n)
	}
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		behavior sshtest.Behavior
		want     ExitStatus
		wantText string
	}{
		"zero":    {sshtest.Behavior{Exec: func(string, sshtest.Stdio) int { return 0 }}, ExitStatus{}, "exit status 0"},
		"127":     {sshtest.Behavior{}, ExitStatus{Code: 127}, "exit status 127"},
		"missing": {sshtest.Behavior{Fault: sshtest.FaultNoExitStatus}, ExitStatus{Missing: true}, "no exit status"},
		"signal": {
			sshtest.Behavior{Exec: func(string, sshtest.Stdio) int { return sshtest.KilledBySignal }},
			ExitStatus{Signal: "KILL"}, "killed by SIGKILL",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dialWell(t, configFor(t, sshtest.New(t, tc.behavior)))
			got, err := start(t, conn, "nix-daemon").Wait(t.Context())
			if err != nil || got != tc.want || got.String() != tc.wantText {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestStartFaults(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		fault    sshtest.Fault
		wantKind Kind
		wantStep Step
	}{
		"sessions refused": {sshtest.FaultRefuseSessions, KindSessionRefused, StepSession},
		"session stops":    {sshtest.FaultStopAtSession, KindTimeout, StepSession},
		"command refused":  {sshtest.FaultRefuseExec, KindExecRefused, StepExec},
		"command stops":    {sshtest.FaultStopAtExec, KindTimeout, StepExec},
		"session closes":   {sshtest.FaultCloseAtExec, KindExecRefused, StepExec},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := configFor(t, sshtest.New(t, sshtest.Behavior{Fault: tc.fault}))
			config.Timeout = shortTimeout
			conn := dialWell(t, config)
			for range 2 { // a refusal leaves the connection usable for the next try
				_, err := conn.Start(t.Context(), "x")
				if e := asError(t, err); e.Kind != tc.wantKind || e.Step != tc.wantStep {
					t.Errorf("got %v, want %q at %q", err, tc.wantKind, tc.wantStep)
				}
			}
			if conn.Err() != nil {
				t.Errorf("the connection ended: %v", conn.Err())
			}
		})
	}
}

func TestStartContext(t *testing.T) {
	t.Parallel()
	conn := dialWell(t, configFor(t, sshtest.New(t, sshtest.Behavior{Fault: sshtest.FaultStopAtSession})))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := conn.Start(ctx, "x"); KindOf(err) != KindTimeout || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// TestCloseFreesEverybody: a peer that does nothing any more holds nobody.
func TestCloseFreesEverybody(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		close    func(*Conn, *Session)
		wantKind Kind
	}{
		"session closed":    {func(_ *Conn, s *Session) { _ = s.Close() }, KindClosed},
		"connection closed": {func(c *Conn, _ *Session) { _ = c.Close() }, KindClosed},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := sshtest.New(t, sshtest.Behavior{Exec: func(_ string, stdio sshtest.Stdio) int {
				_, _ = stdio.Stdin.Read(make([]byte, 1))
				<-stdio.Done
				return 0
			}})
			conn := dialWell(t, configFor(t, server))
			session := start(t, conn, "x")
			server.Freeze()
			var work sync.WaitGroup
			work.Go(func() {
				if _, err := session.Read(make([]byte, 1)); KindOf(err) != tc.wantKind {
					t.Errorf("Read: %v", err)
				}
			})
			work.Go(func() {
				// More than fits into windows and socket buffers.
				_, err := io.Copy(session, io.LimitReader(zeros{}, 1<<30))
				if KindOf(err) != tc.wantKind {
					t.Errorf("Write: %v", err)
				}
			})
			tc.close(conn, session)
			work.Wait()
			server.Thaw()
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestConnectionLost(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{Exec: echo})
	conn := dialWell(t, configFor(t, server))
	session := start(t, conn, "x")
	if conn.Err() != nil {
		t.Fatalf("Err of a good connection: %v", conn.Err())
	}
	server.CloseConnections()
	if _, err := io.ReadAll(session); KindOf(err) != KindLost {
		t.Errorf("Read: %v", err)
	}
	if status, err := session.Wait(t.Context()); KindOf(err) != KindLost || !status.Missing {
		t.Errorf("Wait: %v, %v", status, err)
	}
	<-conn.Done()
	if KindOf(conn.Err()) != KindLost {
		t.Errorf("Err: %v", conn.Err())
	}
	if _, err := conn.Start(t.Context(), "x"); KindOf(err) != KindLost {
		t.Errorf("Start: %v", err)
	}
	_ = conn.Close()
	if _, err := conn.Start(t.Context(), "x"); KindOf(err) != KindClosed {
		t.Errorf("Start after Close: %v", err)
	}
}

func TestWaitContext(t *testing.T) {
	t.Parallel()
	conn := dialWell(t, configFor(t, sshtest.New(t, sshtest.Behavior{Exec: echo})))
	session := start(t, conn, "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if status, err := session.Wait(ctx); !errors.Is(err, context.Canceled) || !status.Missing {
		t.Errorf("Wait: %v, %v", status, err)
	}
}
