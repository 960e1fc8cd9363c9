// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package scale runs the operator's program against a real API server, with its
// own rights and with as many builders as asked for, each an SSH server of the
// test. It checks what only shows at scale and over time: that nothing is written
// while nothing changes, that a restart is not noticed, that builders which
// swallow packets delay no other's probes; and it measures what that costs.
//
// `make scale` is the real thing, see docs/scale.md. As part of `make test` it is
// small and quick, and checks the same.
package scale
