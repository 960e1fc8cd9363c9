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
// # Which builder
//
// The order is written at [Place]: health, cordon, slots; then inputs that are
// there already; then load against slots and speed; then a hash of the inputs.
// The ledger asks the same steps, only that it remembers those that depend on
// neither load nor inputs, until builders or cordons change.
//
// # Who is next
//
// A slot that becomes free goes to one of the requests that can use it. Clients
// take turns:
//
//   - A client that begins to wait, for a class of builds that it does not wait
//     for yet, joins the end of the round.
//   - One that is given a slot goes to the end of the round, for all that it
//     waits for and could have used that slot for. What it gets on builders
//     that another of its requests cannot use does not set that one back.
//   - Of the requests of one client that could use the slot, the one that came
//     first is served.
//   - Requests that name no client are those of one client together.
//
// So, where slots become free one by one, a client that could use a builder
// waits for at most one slot there to go to each of the others. How many builds
// a client has running does not matter: positions in the round depend on grants
// alone, so that a request can be told how many are ahead of it. That number is
// exact among requests of one class if nobody else comes or gives up; where
// classes share only some of their builders, it counts all those in the round
// that share one.
//
// # Guarantees
//
//   - Place is deterministic; its last tie-break is a hash of the request and
//     the builder's name.
//   - A builder never has more leases than slots. Taking slots away from a
//     builder that is in use ends no lease; it gets no new one until enough
//     are released.
//   - A lease ends exactly once, however often Release and Orphan are called
//     and however its request was cancelled. An orphan's slot comes back after
//     its grace time, whatever happens to the builder.
//   - A request that can run now never waits behind one that cannot: whenever
//     the ledger's lock is free, no request in the queue can be placed.
//   - Every change of the builders, every slot that is given back, every end of
//     a grace time and of a cordon wakes those who wait; nobody polls.
//   - Who waits is told why at once and again every interval, and is sent away
//     after the waiting limit, if there is one, told the same.
//
// # Not promised
//
//   - Equal shares: clients have equal turns, also if the builds of one take
//     longer.
//   - The best placement of all: a slot that becomes free goes to who is next,
//     even if somebody else's inputs are there.
//   - Cluster-wide counting: other dispatchers take slots of the same builders
//     without this ledger knowing.
//   - Persistence: a restart forgets leases and queue.
package scheduler
