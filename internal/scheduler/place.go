// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"slices"
	"time"
)

// Builder is one endpoint as the scheduler sees it.
type Builder struct {
	// ID names the builder; it is unique in a snapshot.
	ID string
	// Systems are the platforms it builds for.
	Systems []string
	// Supported and Mandatory are its features as in a machines file:
	// mandatory ones count as supported, and a build must require all of them.
	Supported, Mandatory []string
	// Slots is how many builds it may run at once.
	Slots int
	// Speed is its speed relative to the others; values below 1 count as 1.
	Speed int
	// Down says why the builder cannot be used at present, in one or two
	// words such as "unreachable"; empty means healthy.
	Down string
	// Since is when Down began; zero if unknown.
	Since time.Time
	// Cordon, if set, keeps new builds away.
	Cordon *Cordon
	// Running is how many of its slots are taken, by builds that run and by
	// orphans. [Local] fills it in.
	Running int
	// Orphaned is how many of these are taken by builds that were lost by
	// silence and may still run there. [Local] fills it in.
	Orphaned int
}

// Cordon keeps new builds from a builder; running ones finish.
type Cordon struct {
	// Reason is shown to those who wait.
	Reason string
	// Until ends the cordon; zero means never.
	Until time.Time
}

// Serves reports whether the builder can do every build of the class: it
// builds for the system, has all the features and demands none that the class
// leaves optional. Health and load are not considered.
func (b *Builder) Serves(c Class) bool {
	if !slices.Contains(b.Systems, c.System) {
		return false
	}
	for _, list := range [2][]string{c.Features, c.Mandatory} {
		for _, f := range list {
			if !slices.Contains(b.Supported, f) && !slices.Contains(b.Mandatory, f) {
				return false
			}
		}
	}
	for _, f := range b.Mandatory {
		if !slices.Contains(c.Mandatory, f) {
			return false
		}
	}
	return true
}

// Cordoned reports whether the builder is cordoned at now.
func (b *Builder) Cordoned(now time.Time) bool {
	return b.Cordon != nil && (b.Cordon.Until.IsZero() || now.Before(b.Cordon.Until))
}

// Usable reports whether the builder is healthy and not cordoned at now.
func (b *Builder) Usable(now time.Time) bool {
	return b.Down == "" && !b.Cordoned(now)
}

// Snapshot is what placement decides on. Place does not change it.
type Snapshot struct {
	Builders []Builder
	// Now is compared with the ends of cordons.
	Now time.Time
}

// Request asks for a slot.
type Request struct {
	// Class is what the build needs.
	Class Class
	// Key identifies the build's inputs: of builders that are otherwise equal,
	// requests with the same key get the same one.
	Key string
	// Avoid lists builders that the build has already failed on. They are
	// taken only where no other usable builder serves the class.
	Avoid []string
	// Exclude lists builders that are never taken. They count as serving the class:
	// what nobody else can do waits.
	Exclude []string
	// Client says whose request it is: clients take turns. Requests without a
	// client are those of one client together, so leaving it out gains nothing.
	Client string
	// Present is how many of the build's inputs are known to be on a builder,
	// by the builder's ID. It must not be changed once the request is made.
	Present map[string]int
	// Label names the build for people who look at the queue.
	Label string
	// Waited is how long the build has waited in earlier requests, which counts where
	// the ledger limits waiting.
	Waited time.Duration
}

// Place returns the index in s.Builders of the builder that should run the
// request now, or false if it must wait. It depends on nothing but its
// arguments, and not on the order of the builders.
//
// Builders are looked at in this order:
//
//  1. those that serve the class and are healthy;
//  2. of these, those that are not cordoned;
//  3. of these, those that the request does not exclude, and of these, those that it
//     does not avoid, or all if it avoids all;
//  4. of these, those that have a free slot;
//  5. of these, those with most of the inputs present;
//  6. of these, those with the lowest load after placement: slots taken and this
//     one, divided by slots times speed;
//  7. of these, the one with the highest hash of request key and builder ID,
//     and if that ever is the same, the lowest ID.
func Place(s Snapshot, r Request) (int, bool) {
	return pick(s.Builders, fitting(s, r.Class, r.Avoid, r.Exclude).takes.and(vacant(s.Builders)), &r)
}

// Prospect returns the index of the builder that would run the request if slots
// did not count: [Place] without its step 4. The load of a builder whose slots
// are all taken is above one over its speed, so it comes after a free one that
// is as fast and has the same inputs.
func Prospect(s Snapshot, r Request) (int, bool) {
	return pick(s.Builders, fitting(s, r.Class, r.Avoid, r.Exclude).takes, &r)
}

// fit says which builders matter to requests of a class that avoid and exclude the
// same builders.
type fit struct {
	// serves are the builders that could ever take such a request.
	serves set
	// takes are those that can be used now, busy or not.
	takes set
}

// fitting does the steps of [Place] that depend on neither load nor inputs.
func fitting(s Snapshot, c Class, avoid, exclude []string) fit {
	f := fit{serves: newSet(len(s.Builders)), takes: newSet(len(s.Builders))}
	avoided := newSet(len(s.Builders))
	for i := range s.Builders {
		b := &s.Builders[i]
		if !b.Serves(c) {
			continue
		}
		f.serves.add(i)
		switch {
		case b.Slots <= 0 || !b.Usable(s.Now) || slices.Contains(exclude, b.ID):
		case slices.Contains(avoid, b.ID):
			avoided.add(i)
		default:
			f.takes.add(i)
		}
	}
	// Avoiding is worth a wait for another builder, but not for ever.
	if f.takes.empty() {
		f.takes = avoided
	}
	return f
}

// vacant returns the builders that have a free slot.
func vacant(builders []Builder) set {
	free := newSet(len(builders))
	for i := range builders {
		if builders[i].Running < builders[i].Slots {
			free.add(i)
		}
	}
	return free
}
