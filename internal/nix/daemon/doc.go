// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package daemon speaks the Nix worker protocol, version 1.35 without features,
// at both ends.
//
//	client                                server
//	magic, version          ->
//	                        <-            magic, version
//	CPU affinity 0, 0       ->
//	                        <-            Nix version, [trust], messages, LAST
//	operation, request      ->
//	                        <-            messages, LAST, reply     (or ERROR)
//
// [Client] is our end towards a builder's nix-daemon, [Server] our end towards a
// build hook. Both carry only what a remote build needs. 1.35 is the one version
// that all supported Nix and Lix releases share, so what one side decodes the
// other encodes to the same bytes; 1.34 differs only in the handshake.
//
// Everything read from a peer is limited (see [Limits]) before memory is
// allocated; archives and uploads stream in constant memory.
package daemon
