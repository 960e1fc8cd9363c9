// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package scheduler decides which builder runs which build, and counts what
// runs where.
//
// It has three parts. Classes (class.go, derive.go) say what kinds of build a
// set of builders can take; a client's machines file has lines per class.
// [Place] is a pure function from a snapshot of builders and one request to a
// builder. [Local] is the ledger of one dispatcher: it queues requests, places
// them and takes slots back.
//
// # Guarantees
//
//   - Place is deterministic. Its order is written at the function; the last
//     tie-break is a hash of the request and the builder's name.
//   - A builder never has more leases than slots. Taking slots away from a
//     builder that is in use ends no lease; it gets no new one until enough
//     are released.
//   - A lease is released exactly once, however often Release is called and
//     however its request was cancelled.
//   - Requests that can run on the same builders are served in order of
//     arrival. One that can run now never waits behind one that cannot.
//   - Every change of the builders, every release and every end of a cordon
//     wakes those who wait; nobody polls.
//   - Who waits is told why at once and again every interval.
//
// # Not promised
//
//   - Fairness between clients: two hundred builds of one client go before two
//     of another that came later.
//   - Cluster-wide counting: other dispatchers take slots of the same builders
//     without this ledger knowing.
//   - Persistence: a restart forgets leases and queue.
package scheduler
