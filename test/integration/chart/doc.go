// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package chart installs, upgrades and removes the operator in a real API
// server, by Helm and by kustomize, and looks at what its account may then do.
// There is no node, so nothing runs.
package chart
