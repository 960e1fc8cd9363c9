// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package layout holds the rules of the source tree that a compiler does not
// check: which package may import which, and what every file must have. Its
// tests apply them to the tree; see docs/contributing/layout.md for the why.
package layout
