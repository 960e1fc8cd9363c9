// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"errors"
	"io"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// A session that is closed after a while is closed on this side at once, and the
// command runs on meanwhile, whatever it writes.
func TestCloseAfter(t *testing.T) {
	t.Parallel()
	const linger = 300 * time.Millisecond
	lasted := make(chan time.Duration, 1)
	var failed error
	conn := dialWell(t, configFor(t, sshtest.New(t, sshtest.Behavior{Exec: func(_ string, stdio sshtest.Stdio) int {
		began := time.Now()
		// More than the windows hold: it must not be stuck because nobody reads.
		if _, err := io.Copy(stdio.Stdout, io.LimitReader(zeros{}, 8<<20)); err != nil {
			failed = err
		}
		<-stdio.Done
		lasted <- time.Since(began)
		return 0
	}})))
	session := start(t, conn, "x")
	if _, err := session.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	session.CloseAfter(linger)
	_ = session.Close() // changes nothing
	if _, err := session.Read(make([]byte, 1)); KindOf(err) != KindClosed {
		t.Errorf("Read: %v", err)
	}
	if _, err := session.Write([]byte("x")); KindOf(err) != KindClosed {
		t.Errorf("Write: %v", err)
	}
	if took := time.Since(began); took >= linger {
		t.Errorf("closing this side took %v", took)
	}
	if got := <-lasted; got < linger || failed != nil {
		t.Errorf("the command lasted %v, want %v; it failed with %v", got, linger, failed)
	}
	<-session.Ended()
}

// The end of the connection cuts the wait short.
func TestCloseAfterTheConnection(t *testing.T) {
	t.Parallel()
	conn := dialWell(t, configFor(t, sshtest.New(t, sshtest.Behavior{Exec: echo})))
	session := start(t, conn, "x")
	session.CloseAfter(time.Hour)
	_ = conn.Close()
	<-session.Ended()
}

func TestEnded(t *testing.T) {
	t.Parallel()
	conn := dialWell(t, configFor(t, sshtest.New(t, sshtest.Behavior{Exec: echo})))
	session := start(t, conn, "x")
	select {
	case <-session.Ended():
		t.Error("it has ended before it was told to")
	default:
	}
	if err := session.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-session.Ended()
	if _, err := session.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("Read: %v", err)
	}
}
