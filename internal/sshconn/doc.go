// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package sshconn opens SSH connections to builders and runs commands on them.
//
// It differs from using the ssh package directly in three ways. Every step of
// getting a connection (resolve, connect, identification, key exchange, login,
// opening a session, starting a command) has a deadline of its own, so a peer
// that hangs at any point is noticed. Every way to fail is an [Error] with a
// [Kind], the step and what the peer sent, so that callers can tell people what
// to change without looking at texts. And closing a [Session] or [Conn] frees
// everybody who waits on it at once, whatever the peer does.
//
// Host keys are always checked: against pinned keys, against host certificate
// authorities, or, where the caller asks for it, by trust on first use.
package sshconn
