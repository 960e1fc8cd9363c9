// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package image checks the container image that hack/image makes: that it is
// the one of the Dockerfile, the same every time, and described by its SPDX
// documents.
package image
