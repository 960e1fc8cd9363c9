// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command nix-dispatcher gives the builds of Nix clients beside it to remote
// builders. It runs as a sidecar of a client container, or anywhere with a
// machines file.
//
//	nix-dispatcher [flags]         serve until SIGTERM
//	nix-dispatcher ready [flags]   succeed if a dispatcher serves the directory
//	nix-dispatcher version         print the version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"nixbuilder.io/nix-builder-operator/internal/version"
)

// collectorWeight is by how many bytes the heap looks larger to the garbage collector
// than it is, and so about what there may be of garbage.
const collectorWeight = 8 << 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "nix-dispatcher:", err)
		stop()
		os.Exit(1)
	}
}

// run does what args ask for.
func run(ctx context.Context, args []string) error {
	command := "serve"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	switch command {
	case "serve":
		opts, err := parseFlags(args)
		if err != nil {
			return err
		}
		// Collections get rarer by what this adds to the heap, of which a transfer
		// throws away all of its own every few MiB. Memory that nobody touches takes
		// only addresses.
		weight := make([]byte, collectorWeight)
		defer runtime.KeepAlive(weight)
		return serve(ctx, opts)
	case "ready":
		return ready(ctx, args)
	case "version":
		if len(args) > 0 {
			return fmt.Errorf("version takes no argument, but there is %q", args[0])
		}
		fmt.Println(version.String())
		return nil
	}
	return fmt.Errorf("unknown command %q: there are serve, ready and version", command)
}
