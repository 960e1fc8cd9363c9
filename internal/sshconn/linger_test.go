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

// A session that is closed after a while is closed on this side at once.
func TestCloseAfter(t *testing.T) {
	t.Parallel()
	const linger = 300 * time.Millisecond
	over := make(chan time.Time, 1)
	conn := dialWell(t, configFor(t, sshtest.New(t, sshtest.Behavior{Exec: func(_ string, stdio sshtest.Stdio) int {
		<-stdio.Done
		over <- time.Now()
		return 0
	}})))
	session := start(t, conn, "x")
	began := time.Now()
	session.CloseAfter(linger)
	_ = session.Close() // changes nothing
	if _, err := session.Read(make([]byte, 1)); KindOf(err) != KindClosed {
		t.Errorf("Read: %v", err)
	}
	if _, err := session.Write([]byte("x")); KindOf(err) != KindClosed {
		t.Errorf("Write: %v", err)
	}
	if at := <-over; at.Sub(began) < linger {
		t.Errorf("the command lasted %v, want %v", at.Sub(began), linger)
	}
	<-session.Ended()
}

// What a session writes between its two ends goes nowhere, and does not make it stick.
// The end of the connection cuts the wait short.
func TestCloseAfterTakesOutput(t *testing.T) {
	t.Parallel()
	written := make(chan error, 1)
	conn := dialWell(t, configFor(t, sshtest.New(t, sshtest.Behavior{Exec: func(_ string, stdio sshtest.Stdio) int {
		_, err := io.Copy(stdio.Stdout, io.LimitReader(zeros{}, 8<<20)) // more than the windows hold
		written <- err
		<-stdio.Done
		return 0
	}})))
	session := start(t, conn, "x")
	session.CloseAfter(time.Hour)
	if err := <-written; err != nil {
		t.Error(err)
	}
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
