// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package chart tests the two ways to install the operator, the Helm chart and
// config/, and the manifests that the documentation shows. Nothing here needs
// a cluster; test/integration/chart installs the chart into a real API server.
package chart
