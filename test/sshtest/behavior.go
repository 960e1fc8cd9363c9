// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"io"
	"net"

	"golang.org/x/crypto/ssh"
)

// Exec runs a command: it reads and writes stdio and returns the exit status. It is
// to end when its input does.
type Exec func(command string, stdio Stdio) int

// KilledBySignal is what an Exec returns to have its end reported as SIGKILL.
const KilledBySignal = -1

// Forward makes the connection that a client wants a jump host to make. An
// [*ssh.OpenChannelError] is told as it is, any other error as a failure to connect.
type Forward func(address string) (net.Conn, error)

// Stdio is what a command is connected to. The input ends when the client closes it
// or goes away.
type Stdio struct {
	// Done is closed when the session is over on the client's side; commands that do
	// not read their input end then.
	Done   <-chan struct{}
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Behavior says what a server does. The zero value, with an Exec, is a server that
// accepts every key for every user.
type Behavior struct {
	// Exec runs commands. Nil answers each with "not found" and status 127, as a
	// shell does.
	Exec Exec
	// Forward, unless nil, makes it a jump host; otherwise it passes on no connections.
	Forward Forward
	// HostKeys replaces the server's own key. Signers with host certificates are
	// offered as such.
	HostKeys []ssh.Signer
	// AuthorizedKeys, unless nil, are the only keys accepted. UserAuthorities sign
	// user certificates that are accepted as well. Users, unless nil, are the only
	// user names accepted.
	AuthorizedKeys  []ssh.PublicKey
	UserAuthorities []ssh.PublicKey
	Users           []string
	// Preamble is sent before the SSH identification, as some servers do.
	Preamble string

	Fault Fault
	// Text is what FaultText sends.
	Text string
}

// Fault is one way to fail.
type Fault int

// The faults, by how far a client gets.
const (
	FaultNone Fault = iota
	// FaultHangUp closes every connection at once.
	FaultHangUp
	// FaultSilent reads and discards what comes, and answers nothing.
	FaultSilent
	// FaultDead neither reads nor writes: what a machine looks like whose kernel
	// accepts connections for processes that are stopped.
	FaultDead
	// FaultText sends Behavior.Text and closes.
	FaultText
	// FaultStopBeforeKex identifies itself and does nothing more.
	FaultStopBeforeKex
	// FaultHangUpAtKex identifies itself and closes.
	FaultHangUpAtKex
	// FaultOldAlgorithms offers no key exchange algorithm in use today.
	FaultOldAlgorithms
	// FaultStopAtLogin never answers a login with a key.
	FaultStopAtLogin
	// FaultHangUpAtLogin closes instead of answering a login with a key.
	FaultHangUpAtLogin
	// FaultPasswordOnly offers passwords only.
	FaultPasswordOnly
	// FaultSecondFactor accepts the key and asks for more.
	FaultSecondFactor
	// FaultRefuseSessions opens no session; FaultStopAtSession never answers the
	// request to open one.
	FaultRefuseSessions
	FaultStopAtSession
	// FaultRefuseExec runs no command; FaultStopAtExec never answers the request
	// to run one; FaultCloseAtExec closes the session instead.
	FaultRefuseExec
	FaultStopAtExec
	FaultCloseAtExec
	// FaultNoExitStatus ends sessions without one.
	FaultNoExitStatus
	// FaultIgnoreGlobal answers no global requests, which keepalives are.
	FaultIgnoreGlobal
)
