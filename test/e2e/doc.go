// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package e2e holds the tests that use nothing but the real thing: the programs
// as they are shipped, stock Nix of several versions, ordinary builders over
// SSH, and a real API server.
package e2e
