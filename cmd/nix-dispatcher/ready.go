// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/clientdir"
)

// readyTimeout bounds the check of a socket that nobody accepts on.
const readyTimeout = 3 * time.Second

// ready succeeds if clients can use the dispatcher: helper and machines file are
// there and the socket is answered. The builders' health does not matter; builds
// wait for them.
func ready(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("nix-dispatcher ready", flag.ContinueOnError)
	volume := flags.String("volume", defaultVolume, "`directory` shared with the clients")
	if err := parse(flags, args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	helper := filepath.Join(*volume, clientdir.HelperName)
	if info, err := os.Stat(helper); err != nil || info.Mode()&0o111 == 0 {
		return fmt.Errorf("the helper %s is not installed yet", helper)
	}
	machines := filepath.Join(*volume, clientdir.MachinesName)
	if _, err := os.Stat(machines); err != nil {
		return fmt.Errorf("%s is not written yet: the dispatcher has not read a list of builders", machines)
	}
	dialer := net.Dialer{Timeout: readyTimeout}
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(*volume, connect.SocketName))
	if err != nil {
		return fmt.Errorf("the dispatcher does not answer: %w", err)
	}
	return conn.Close()
}
