// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package probe finds out, again and again, whether builders can be used, and says
// what to change where one cannot.
//
// A [Prober] keeps one schedule per endpoint. Each probe passes the same [Steps] a
// build would: connect, check the host key, log in, start nix-daemon, speak its
// protocol, see whether the user is trusted, measure the machine, and compare what
// the builder offers with what is declared for it. Each step yields an [Outcome]; the
// first that fails names the remedy and leaves the later ones unknown. A failed probe
// is data, never an error.
//
// What is seen becomes an endpoint's [State] by the rules of state.go; when it is
// looked at again by those of schedule.go; reasons.go and messages.go hold every
// reason and every text. kept.go says what the connection between two probes is good
// for, request.go how to ask for a probe. canary.go says when something is built on a
// builder, and canary_build.go, canary_program.go and canary_features.go what.
// machine.go and machine_fitness.go say when a machine is too full or too busy.
package probe
