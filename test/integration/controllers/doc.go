// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package controllers tests the controllers against a real API server. Most
// specs call Reconcile themselves, with a prober and a clock that they move, and
// so need not wait for anything; those about the wiring run a manager. Every
// spec has a namespace of its own.
package controllers
