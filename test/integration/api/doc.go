// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package api tests what the API server makes of NixBuilders: validation,
// defaults and columns. Every rule meets a value that it allows and one that
// it refuses.
package api
