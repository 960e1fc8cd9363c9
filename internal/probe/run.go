// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"io"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

const (
	// maxDiscoveryTimeout bounds each of the programs that only complete the picture.
	// With a forced command they wait for something that never comes.
	maxDiscoveryTimeout = 5 * time.Second
	// maxOutput bounds what is read of their output, in bytes; Nix's settings in
	// JSON are some 100 KiB. Many machines may be read from at the same time.
	maxOutput = 1 << 20
	// maxDaemonMessage bounds each message of a daemon, in bytes, of which a screenful of log
	// is the longest, and maxDaemonMessages how many of them there are in one canary.
	maxDaemonMessage  = 256 << 10
	maxDaemonMessages = 2000
)

func discoveryTimeout(timeout time.Duration) time.Duration {
	return min(timeout, maxDiscoveryTimeout)
}

// said is what a program printed.
type said struct {
	stdout  []byte
	stderr  string // its end
	success bool   // it ended by itself, with status 0, in time
	mute    bool   // it ended by itself, with another status, and said nothing
}

// run runs a command without input.
func run(ctx context.Context, t *Target, conn *sshconn.Conn, command string) said {
	return runUpTo(ctx, t, conn, command, maxOutput)
}

// runUpTo is run for a command that prints little: of what it prints, limit bytes are
// read.
func runUpTo(ctx context.Context, t *Target, conn *sshconn.Conn, command string, limit int64) said {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout(t.Timeout))
	defer cancel()
	session, err := conn.Start(ctx, command)
	if err != nil {
		return said{}
	}
	defer func() { _ = session.Close() }()
	// Closing is what ends a read.
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()
	_ = session.CloseWrite()
	output, err := io.ReadAll(io.LimitReader(session, limit))
	if err != nil {
		return said{stderr: session.Stderr()}
	}
	status, err := session.Wait(ctx)
	return said{
		stdout: output, stderr: session.Stderr(), success: err == nil && status.Success(),
		mute: err == nil && status.Code > 0 && len(output) == 0 && session.Stderr() == "",
	}
}
