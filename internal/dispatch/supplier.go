// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"log/slog"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

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
	// bound is set when an upload went straight to a builder.
	bound *placement
	// say shows the users a line.
	say func(string) error
	// relay passes a builder's messages on to the users.
	relay daemon.MessageSink
}

func newSupplier(server *Server, log *slog.Logger, class scheduler.Class, say func(string) error, relay daemon.MessageSink) *supplier {
	return &supplier{server: server, log: log, class: class, inputs: newInputs(server.opts.Spool), say: say, relay: relay}
}

// release gives back what the supplier holds.
func (s *supplier) release() {
	if s.bound != nil {
		s.bound.release()
	}
	s.inputs.release()
}
