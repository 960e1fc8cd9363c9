// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package cluster holds the tests that need a real kubelet: the packaged chart
// is installed into a cluster of package test/cluster, and pods build on real
// Nix builders. Run them with `make e2e` as root. What a failed spec leaves to
// look at lies in bin/e2e.
package cluster
