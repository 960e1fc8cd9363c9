// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package nixlab runs real Nix builders and real Nix clients of several
// versions on one machine, for tests and for the demo.
//
// Every host of a [Lab] is a mount and process namespace over the unpacked
// packages of a Debian suite, with its own /nix. A [Builder] runs nix-daemon
// and sshd on a loopback address of its own, with a user whom Nix trusts and
// one whom it does not; killing its first process is a faithful crash. A
// [Client] has neither network nor ssh unless asked for, so a build that works
// from there has needed neither.
//
// The lab needs root. Nothing outlives the process that made it, however that
// process ends: the kernel kills the hosts, and a keeper removes the files.
package nixlab
