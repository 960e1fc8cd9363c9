// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command nix-dispatch-connect is what Nix starts in the client's container
// for a builder line of the form
//
//	ssh-ng://localhost?remote-program=<this program>&remote-store=<class>.<slot>
//
// With the host localhost, every Nix runs the remote program as a child
// instead of ssh, with the worker protocol on its standard streams and the
// arguments --stdio --store <class>.<slot>. The program tells the dispatcher
// which line was chosen and on whose behalf, then carries bytes both ways. It
// knows nothing of the protocol.
//
// It runs once per derivation, from images of any libc: static, and without
// fmt, net and flag, which would make it half as large again.
//
// Standard error is the channel on which the build hook answers Nix, and a
// line that begins with "# " would be taken for an answer. While a build runs,
// Nix drops every line there that is no message of its internal log. So the
// program says nothing unless it fails, and says that as such a message.
package main

import (
	"errors"
	"os"
	"path/filepath"

	"nixbuilder.io/nix-builder-operator/internal/connect"
)

// socketVariable is the environment variable that names the dispatcher's
// socket where it is not next to this program.
const socketVariable = "NIX_DISPATCH_SOCKET"

func main() {
	os.Exit(run(os.Args[1:], func(err error) {
		_, _ = os.Stderr.WriteString(message("nix-dispatch-connect: " + err.Error()))
	}))
}

// run shows its errors with fail and returns the exit status: 2 for a call
// that can never work, 1 for a connection that failed.
func run(args []string, fail func(error)) int {
	call, err := parseCall(args)
	if err != nil {
		fail(err)
		return 2
	}
	socket, err := socketPath(call.socket)
	if err != nil {
		fail(err)
		return 2
	}
	conn, err := dial(socket)
	if err != nil {
		fail(err)
		return 1
	}
	if err := conn.send(headerFor(call.target)); err != nil {
		fail(err)
		return 1
	}
	if !join(os.Stdin, os.Stdout, conn, fail) {
		return 1
	}
	return 0
}

// socketPath is the socket named by flag or environment, else the one in this
// program's own directory: the dispatcher puts both into the shared volume.
func socketPath(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if path := os.Getenv(socketVariable); path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", errors.New("cannot find its own directory, where the dispatcher's socket should be: " + err.Error() +
			"; name the socket in " + socketVariable)
	}
	return filepath.Join(filepath.Dir(self), connect.SocketName), nil
}
