// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command kubectl-nixbuilder is the plugin "kubectl nixbuilder": it says what is wrong
// with Nix builders and what to do about it, in a cluster and without one.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
)

// Statuses that the program exits with.
const (
	// statusWell: what was asked for is done, or nothing is wrong.
	statusWell = 0
	// statusWrong: something is wrong with a builder, or a build would go nowhere.
	statusWrong = 1
	// statusUnclear: it could not be found out, or not be done.
	statusUnclear = 2
	// statusUsage: the command line, or a file that it names, is not understood
	// (EX_USAGE of sysexits.h).
	statusUsage = 64
	// statusInterrupted is what shells have for a program ended by SIGINT.
	statusInterrupted = 130
)

// statusError ends the program with a status. Without a message everything has been
// said.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

func usage(err error) error { return &statusError{statusUsage, err} }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, streams{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:])
	stop()
	os.Exit(status)
}

// streams are the standard ones.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// run is the whole program.
func run(ctx context.Context, s streams, args []string) int {
	root := newRoot(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return statusWell
	}
	if ctx.Err() != nil {
		return statusInterrupted
	}
	status := statusUnclear
	var exit *statusError
	if errors.As(err, &exit) {
		status = exit.status
	}
	if text := err.Error(); text != "" {
		// A file or a server may have its part in the text.
		for line := range strings.Lines("error: " + text) {
			_, _ = fmt.Fprintln(s.err, show.Clean(strings.TrimSuffix(line, "\n")))
		}
	}
	return status
}
