// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// NixShell returns the shell of a builder for x86_64-linux with feature kvm and
// four jobs, on an idle machine: it runs what a prober asks for. daemon serves the connections to
// nix-daemon.
func NixShell(daemon func(io.ReadWriteCloser) error) Exec {
	return func(command string, stdio Stdio) int {
		switch {
		case strings.HasPrefix(command, "/bin/sh -c ") && strings.Contains(command, "/nix/store"):
			_, _ = fmt.Fprintf(stdio.Stdout, machineReport, time.Now().Unix())
		case strings.HasSuffix(command, "nix-daemon --stdio"):
			_ = daemon(stdioConn{stdio}) // how a connection ends is the client's to judge
		case strings.Contains(command, "nix-store"):
			_, _ = io.WriteString(stdio.Stdout, "nix-store (Nix) 2.34.8\nSystem type: x86_64-linux\n")
		case strings.Contains(command, "config show --json"):
			_, _ = io.WriteString(stdio.Stdout,
				`{"system":{"value":"x86_64-linux"},"extra-platforms":{"value":[]},"system-features":{"value":["kvm"]},"max-jobs":{"value":4}}`)
		default:
			return 127
		}
		return 0
	}
}

// machineReport is what an idle machine says of itself.
const machineReport = `nix-builder-machine-begin
clock %d
load 0.10 0.20 0.30 1/234 5678
processors 4
cpu some avg10=0.00 avg60=0.00 avg300=0.00 total=1
memory some avg10=0.00 avg60=0.00 avg300=0.00 total=1
io some avg10=0.00 avg60=0.00 avg300=0.00 total=1
store Filesystem 1024-blocks Used Available Capacity Mounted on /dev/sda1 100000000 20000000 80000000 20%% /
nix-builder-machine-end
`

// stdioConn joins the input and output of a command. The session closes them.
type stdioConn struct{ Stdio }

func (c stdioConn) Read(p []byte) (int, error)  { return c.Stdin.Read(p) }
func (c stdioConn) Write(p []byte) (int, error) { return c.Stdout.Write(p) }
func (c stdioConn) Close() error                { return nil }
