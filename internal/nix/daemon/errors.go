// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"errors"
	"fmt"
)

var (
	// ErrClientGone is the cause of a context of Server.WatchHangup that ended
	// because the peer closed the connection.
	ErrClientGone = errors.New("the client closed the connection")
	// ErrClosed is matched by the errors of a Client after Close or after an
	// error that left the connection unusable.
	ErrClosed = errors.New("the connection to the daemon is closed")
	// ErrNoRequest is returned by a Server that is told to send something while
	// no request waits for it: the reply was sent already, or none was read.
	ErrNoRequest = errors.New("no request waits for this message")
)

// VersionError says that the peer's protocol version is too old, or is none that
// we know.
type VersionError struct {
	// Peer names the peer's part, "client" or "daemon".
	Peer string
	// Version is the peer's.
	Version Version
}

// Error implements error.
func (e *VersionError) Error() string {
	if e.Version.Major() != Protocol.Major() {
		return fmt.Sprintf("the %s speaks version %s of the worker protocol, which is unknown here; supported is %s and later 1.x",
			e.Peer, e.Version, OldestProtocol)
	}
	return fmt.Sprintf("the %s speaks version %s of the worker protocol, which is too old: %s (Nix 2.8) or later is needed",
		e.Peer, e.Version, OldestProtocol)
}

// AccessDeniedError says that the daemon answered the handshake with a refusal.
// Determinate Nix does that for users outside its allowed-users.
type AccessDeniedError struct{}

// Error implements error.
func (*AccessDeniedError) Error() string {
	return "the daemon denies access: the user is not in its allowed-users"
}

// PreambleError says that the peer sent something else where the handshake must
// stand, typically what a login shell prints before the daemon starts.
type PreambleError struct {
	// Text is its first line, printable, at most 64 bytes.
	Text string
}

// Error implements error.
func (e *PreambleError) Error() string {
	return fmt.Sprintf("the peer does not speak the worker protocol: it sent %q", e.Text)
}

// ProtocolError says that a request breaks the protocol or asks for what this end
// does not offer. The connection is of no use after it.
type ProtocolError struct {
	// Operation is what was asked for, 0 where that is not known.
	Operation Operation
	// Text says what is wrong, as a sentence that names the operation.
	Text string
	// Err is the cause, if there is one: usually a *wire.Error.
	Err error
}

// Error implements error.
func (e *ProtocolError) Error() string { return e.Text }

// Unwrap returns the cause.
func (e *ProtocolError) Unwrap() error { return e.Err }

// RemoteError is an error that the peer reported for an operation. The connection
// stays in step after it, but daemons close it where the request itself was at
// fault.
type RemoteError struct {
	// Level is the severity, normally LevelError.
	Level Level
	// Message is the peer's text, verbatim: it may hold newlines and ANSI colours.
	Message string
	// Traces are the lines of context that Nix prints under the message.
	Traces []string
}

// Error returns the message verbatim.
func (e *RemoteError) Error() string { return e.Message }
