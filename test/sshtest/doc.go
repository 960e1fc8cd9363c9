// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package sshtest is an SSH server inside the test process that can be told to fail
// in every way a builder's sshd does: refuse, stay silent, speak something else,
// stop in the middle of the handshake, present another host key, drop logins, refuse
// sessions, and freeze as a process does that is sent SIGSTOP.
//
// Commands are run by a function, so that a test decides what is on the other end.
// Several hundred servers fit into one process. [Network] replaces the loopback
// interface where a test runs on fake time (testing/synctest).
package sshtest
