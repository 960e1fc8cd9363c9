// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
)

// bufferSize is what a pipe holds.
const bufferSize = 64 << 10

// join carries bytes between Nix and the dispatcher until both directions have
// ended; the end of one is passed on and leaves the other open. It calls fail
// at most once per direction, and returns whether it did not.
//
// That Nix ends first is the normal way. When the dispatcher ends first, fail
// comes before Nix can notice: Nix kills this process as soon as it does, and
// says itself no more than that the connection has ended.
func join(stdin io.Reader, stdout *os.File, c *conn, fail func(error)) bool {
	var nixEnded atomic.Bool
	upOK := make(chan bool, 1)
	go func() {
		readErr, writeErr := pump(c, stdin)
		if readErr != nil {
			fail(errors.New("cannot read from Nix: " + cause(readErr)))
		}
		// A failed write means that the dispatcher is gone. What it still said,
		// and its end, come through the other direction.
		if writeErr == nil {
			nixEnded.Store(true)
			_ = syscall.Shutdown(c.fd, syscall.SHUT_WR)
		}
		upOK <- readErr == nil
	}()

	readErr, writeErr := pump(stdout, c)
	if writeErr != nil {
		// Nix is gone, which its own exit explains. Whatever it was sending
		// is of no use any more.
		return false
	}
	downOK := readErr == nil && nixEnded.Load()
	if !downOK {
		if why := c.inquire(); why != "" {
			fail(errors.New(why))
		} else {
			fail(lost(c.path, readErr))
		}
	}
	closeWrite(stdout)
	return <-upOK && downOK
}

// lost is the error for a dispatcher that went away while Nix was connected.
func lost(path string, readErr error) error {
	how := ""
	if readErr != nil {
		how = " (" + cause(readErr) + ")"
	}
	return errors.New("the dispatcher on " + path + " ended the connection" + how +
		" before the build was done: if no error stands above, its container was stopped or restarted; see its log, and build again")
}

// pump copies until src ends and tells the two ways to fail apart.
func pump(dst io.Writer, src io.Reader) (readErr, writeErr error) {
	buffer := make([]byte, bufferSize)
	for {
		n, err := src.Read(buffer)
		if n > 0 {
			if _, writeErr := dst.Write(buffer[:n]); writeErr != nil {
				return nil, writeErr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}

// closeWrite ends the stream to Nix. Standard output may be a socket that
// standard input shares, where closing one of the two would not be seen.
func closeWrite(stdout *os.File) {
	_ = syscall.Shutdown(int(stdout.Fd()), syscall.SHUT_WR)
	_ = stdout.Close()
}
