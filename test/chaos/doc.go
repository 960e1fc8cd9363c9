// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package chaos shows that a builder can die in the middle of a build and
// nobody loses anything.
//
// Real clients build through the real dispatcher on three real builders, while
// builders are killed, stopped, cut off, filled up and taken from the list. The
// harness knows beforehand every byte of every output, keeps a log of what it
// did to whom and when, and looks at the end for anything left over on either
// side.
//
//	TestChaos   graphs of builds among seeded faults
//	TestKills   a builder killed in a known phase of a known build, many times
//	TestOutputs a builder that dies between two outputs of a build that never
//	            gives the same twice
//
// All runs in a network and a mount namespace of its own, so links and disks
// vanish with the process, however that ends.
package chaos
