// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package e2e holds the tests that use nothing but the real thing: stock Nix
// of several versions, ordinary builders over SSH, and the dispatcher as it is
// shipped between them.
package e2e
