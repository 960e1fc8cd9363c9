// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"log/slog"
	"sync"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

// platformBuiltin is the system of derivations that run inside Nix itself; any
// builder does.
const platformBuiltin = "builtin"

// supplier knows what one build needs and brings it to builders. Before operation
// 36 it belongs to the session of the client, after it to the build's job. Its
// methods are not safe for concurrent use.
type supplier struct {
	server *Server
	log    *slog.Logger
	// class is that of the client's line: at least what the build needs.
	class  scheduler.Class
	inputs *inputs
	// substitute is set once the client has allowed builders to fetch inputs
	// from their substituters.
	substitute bool
	// holds keep inputs where they are on builders.
	holds *holds
	// forward sends inputs ahead; nil while that is not worth while. coming counts the
	// bytes that have come since that was last looked at.
	forward *forward
	coming  uint64
	// background ends what runs beside the owner; running counts it.
	background context.Context
	stop       context.CancelFunc
	running    sync.WaitGroup
	// bound is set when an upload went straight to a builder.
	bound *placement
	// say shows the users a line, and waits is told why a slot is waited for. Both
	// fail when nobody is left to tell.
	say   func(string) error
	waits func(scheduler.Waiting) error
	// relay passes a builder's messages on to the users.
	relay daemon.MessageSink
	// enter is told which part of its work begins.
	enter func(Phase)
	// These four change when the supplier passes from session to job: what works in
	// the background must not use them.
}

func newSupplier(server *Server, log *slog.Logger, class scheduler.Class, say func(string) error, relay daemon.MessageSink) *supplier {
	s := &supplier{
		server: server, log: log, class: class, inputs: newInputs(server.opts.Spool), holds: newHolds(server.opts.Builders),
		say: say, relay: relay, enter: func(Phase) {},
		waits: func(w scheduler.Waiting) error { return say(w.String()) },
	}
	s.background, s.stop = context.WithCancel(server.running)
	return s
}

// inBackground runs f beside the owner. Its context ends with the supplier, which
// waits for it.
func (s *supplier) inBackground(f func(context.Context)) {
	s.running.Go(func() { f(s.background) })
}

// successor returns a supplier for the client's next build, which knows the same inputs
// and has pins of its own on them.
func (s *supplier) successor() *supplier {
	next := newSupplier(s.server, s.log, s.class, s.say, s.relay)
	next.substitute = s.substitute
	for _, path := range s.inputs.paths {
		next.inputs.add(path)
		if s.inputs.present[path] {
			next.inputs.present[path] = true
		}
	}
	return next
}

// need returns what the scheduler must know of a build.
func (s *supplier) need(r *daemon.BuildDerivation) (scheduler.Request, error) {
	features, err := r.Derivation.RequiredSystemFeatures()
	if err != nil {
		return scheduler.Request{}, err
	}
	system := r.Derivation.Platform
	if system == platformBuiltin {
		system = s.class.System
	}
	return scheduler.Request{Class: scheduler.Need(system, features), Key: r.DrvPath}, nil
}

// needed are the paths that a builder must have: what the client has named and has
// been told is there or has sent, which is the closure, and the derivation's own list.
func (s *supplier) needed(drv *daemon.BasicDerivation) []string {
	paths := s.inputs.available()
	for _, path := range drv.InputSources {
		if !s.inputs.present[path] {
			paths = append(paths, path)
		}
	}
	return paths
}

// release gives back what the supplier holds.
func (s *supplier) release() {
	s.stop()
	s.running.Wait()
	if s.bound != nil {
		s.bound.release()
	}
	s.holds.release()
	s.inputs.release()
}
