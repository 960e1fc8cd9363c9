// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package wire reads and writes the primitives of the Nix worker protocol:
// little-endian 64-bit words, booleans, zero-padded byte strings, lists of them
// and framed streams.
//
// A [Reader] never believes a length. Every read names the largest value that
// it accepts, memory grows with the bytes that really arrive, and a message as a
// whole can be given a budget. The first error sticks: decoders read field after
// field and look at [Reader.Err] once, except before loops whose bounds come from
// the peer, which end by themselves because a failed count is zero.
package wire
