// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package dispatch is the core of the dispatcher: it accepts the connections that
// a Nix client's build hook makes through the helper, and gives each build a
// builder.
//
// To the client a session is a remote store that trusts it and answers at once.
// Behind that:
//
//	31 QueryValidPaths     answered from the spool and from what several builders have
//	44 AddMultipleToStore  into the spool
//	36 BuildDerivation     joins a job: place (a slot), transfer (what the builder lacks), build, collect outputs
//	26, 38                 the outputs, from the spool or from the builder
//
// A session speaks with one connection, a job is one build in flight. Equal builds are
// one job that several sessions follow; it ends with its outcome, or when the last of
// them leaves.
//
//	session ──supplier──► job ──messages──► journal ──► sessions
//	   └── hook ◄──delivery── outcome
//
// Everything a build needs can be had without the client once 36 has come. So a
// build whose builder is lost is placed, transferred and built again; only uploads
// for which the spool had no room are bound to one builder.
//
// A client learns store paths of its own builds only, and can change nothing on a
// builder: operations outside the list are protocol errors, settings are answered
// and dropped.
package dispatch

import (
	"context"
	"errors"
	"io"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// Scheduler grants slots on builders.
type Scheduler interface {
	// Acquire waits for a slot, telling notify why. The caller releases the
	// lease.
	Acquire(ctx context.Context, r scheduler.Request, notify func(scheduler.Waiting)) (*scheduler.Lease, error)
	// Prospect tells who would get the slot if all were free.
	Prospect(r scheduler.Request) (builder string, ok bool)
}

// Builders opens sessions on builders, and keeps store paths there. A failure of a
// builder is a *fleet.LostError.
type Builders interface {
	// Builders returns all builders with their health.
	Builders() []scheduler.Builder
	// Open opens a session on the builder of that ID.
	Open(ctx context.Context, id string) (Builder, error)
	// OpenBulk opens a session for large transfers. It waits until the builder has
	// few enough of them.
	OpenBulk(ctx context.Context, id string) (Builder, error)
	// Hold asks which of paths a builder has and keeps these there. With no paths
	// it asks nothing.
	Hold(ctx context.Context, id string, paths []string) (Hold, error)
	// Known returns a function that tells what a builder has, as far as is known
	// without asking.
	Known(id string) func(path string) bool
	// Believe notes that paths have come to a builder, and has them held in the
	// background.
	Believe(id string, paths []string)
	// Doubt makes further holds ask anew, after a builder did not have what it
	// should have had.
	Doubt(id string)
}

// Hold keeps store paths on a builder from its garbage collector, as of
// [fleet.Hold]. It is safe for concurrent use.
type Hold interface {
	// Add asks for more paths, and again for those that were not there.
	Add(ctx context.Context, paths []string) error
	// Has reports whether a path is there and stays there until Release.
	Has(path string) bool
	// Infos returns what the builder knows of paths that the hold has.
	Infos(ctx context.Context, paths []string) (map[string]daemon.PathInfo, error)
	// Release ends the hold.
	Release()
}

// Builder is a daemon session on a builder, as of [fleet.Session], where errors
// are explained.
type Builder interface {
	QueryValidPaths(ctx context.Context, paths []string, substitute bool, sink daemon.MessageSink) ([]string, error)
	QuerySubstitutablePaths(ctx context.Context, paths []string) ([]string, error)
	AddMultipleToStore(ctx context.Context, source daemon.PathSource, sink daemon.MessageSink) error
	BuildOutputs(ctx context.Context, drvPath string, drv *daemon.BasicDerivation, sink daemon.MessageSink, outputs daemon.Outputs) (*daemon.BuildResult, error)
	QueryPathInfo(ctx context.Context, path string) (*daemon.PathInfo, bool, error)
	NARFromPath(ctx context.Context, path string, dst io.Writer) error
	// Reuse gives the session back for others, once nothing that it keeps is needed
	// any more; Close ends it. Closed is closed when the builder has ended the session,
	// or has not told so in time; Ended then tells which.
	Reuse()
	Close()
	Closed() <-chan struct{}
	Ended() bool
}

// Classes knows the lines of the clients' machines file.
type Classes interface {
	// Lookup returns the class of a line, or an error that tells the client
	// what is wrong with it.
	Lookup(target connect.Target) (scheduler.Class, error)
}

// Spool keeps NARs.
type Spool interface {
	// Create reserves room for a NAR; [spool.ErrNoRoom] if there is none.
	Create(info daemon.PathInfo) (*spool.Writer, error)
	// Pin returns a NAR that is there.
	Pin(path string) (*spool.Pin, bool)
	// Forget drops a NAR that has another hash.
	Forget(path, unless string)
}

// Sides of a protocol error, for [Recorder].
const (
	SideClient  = "client"
	SideBuilder = "builder"
)

// Recorder is told of events as they happen. It must not block.
type Recorder interface {
	// Waited tells how long a build of a class has waited for a builder that it
	// now has, each time that it needed one.
	Waited(class scheduler.Class, d time.Duration)
	// Dispatched tells how long it took from the client's BuildDerivation to the
	// builder's, for a build that has not waited for a slot.
	Dispatched(d time.Duration)
	// Joined tells of a client that follows a build which another has begun.
	Joined()
	// Ended tells of a build of a class that has ended on a builder; empty if it
	// never had one.
	Ended(class scheduler.Class, builder, result string)
	// FailedOver tells of a builder that a build in that phase has left because
	// the builder was lost, or failed it.
	FailedOver(builder, phase string)
	// Missed tells of lines of a build's log that a client did not get because it
	// was too slow.
	Missed(lines int)
	// BrokeProtocol tells of a peer on that side which sent what makes no sense.
	BrokeProtocol(side string)
}

// breaksProtocol reports whether err is a peer's violation of a protocol, and not
// the end of a connection.
func breaksProtocol(err error) bool {
	var (
		protocol *daemon.ProtocolError
		header   *connect.FormatError
		version  *connect.VersionError
	)
	return errors.As(err, &protocol) || errors.As(err, &header) || errors.As(err, &version) || errors.Is(err, wire.ErrMalformed)
}

// OnFleet returns the fleet as Builders.
func OnFleet(f *fleet.Fleet) Builders { return fleetBuilders{f} }

type fleetBuilders struct{ *fleet.Fleet }

func (f fleetBuilders) Open(ctx context.Context, id string) (Builder, error) {
	return asBuilder(f.Fleet.Open(ctx, id))
}

func (f fleetBuilders) OpenBulk(ctx context.Context, id string) (Builder, error) {
	return asBuilder(f.Fleet.OpenBulk(ctx, id))
}

func asBuilder(session *fleet.Session, err error) (Builder, error) {
	if err != nil {
		return nil, err
	}
	return session, nil
}

func (f fleetBuilders) Hold(ctx context.Context, id string, paths []string) (Hold, error) {
	hold, err := f.Fleet.Hold(ctx, id, paths)
	if err != nil {
		return nil, err
	}
	return hold, nil
}
