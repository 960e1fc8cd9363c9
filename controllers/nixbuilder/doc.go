// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package nixbuilder keeps the status of NixBuilders true.
//
// Reconcile never dials. It checks specs, reads the Secrets that they name,
// tells the prober what to probe, and turns what the prober knows by now into
// status: see accept.go, credentials.go, targets.go and status.go, in that
// order. The prober wakes it through [Wakeups] when something changed. Status
// is computed from these facts alone and written only where it differs, so that
// a fleet in steady state causes no writes; events tell transitions.
//
// What an earlier pass found is read back from status in two places only: the
// pinned host keys, and the state that the prober starts from when it meets an
// endpoint for the first time, after a restart or a change of leader.
package nixbuilder
