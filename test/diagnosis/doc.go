// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package diagnosis tests what the operator says of real builders that are broken in
// one way each: sshd and Nix of the lab on one side, what a real API server has in the
// end on the other. It also tests that the remedy that is named is one.
package diagnosis
