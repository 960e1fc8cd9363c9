// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package connect is the first thing said on a connection between
// nix-dispatch-connect, which Nix starts in the client's container, and the
// dispatcher beside it: one header that names the machines-file line Nix chose
// and the processes it comes from. Everything after the header is the stream
// of Nix itself, untouched.
//
//	helper ──header──► dispatcher
//	Nix ──worker protocol──► helper ──the same bytes──► dispatcher
//
// Layout, little-endian:
//
//	0   4  magic "nxbC"
//	4   1  version (1)
//	5   1  zero
//	6   2  length of the body, at most MaxBody
//	8   8  inode of the pid namespace the process ids belong to
//	16  4  hook process id         20  8  its start time
//	28  4  client process id       32  8  its start time
//	40  2  slot
//	42  1  length of the class     43  …  class
//
// A body may end in bytes that this version does not know; they are skipped,
// so fields can be added without a new version. There is no answer: a header
// that is refused ends in a closed connection.
//
// The package uses no fmt, net or reflection: it is linked into a binary that
// is started once per derivation.
package connect
