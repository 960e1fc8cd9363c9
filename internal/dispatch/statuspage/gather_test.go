// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package statuspage

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/dispatch"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// Sources that say what they hold.
type (
	server dispatch.Status
	ledger scheduler.Status
	pools  []fleet.Stats
	store  spool.Usage
)

func (s server) Status() dispatch.Status  { return dispatch.Status(s) }
func (l ledger) Status() scheduler.Status { return scheduler.Status(l) }
func (p pools) Stats() []fleet.Stats      { return p }
func (s store) Usage() spool.Usage        { return spool.Usage(s) }

func TestGather(t *testing.T) {
	t.Parallel()
	began, since := moment.Add(-time.Hour), moment.Add(-time.Minute)
	kvm := scheduler.Need("x86_64-linux", []string{"kvm"})
	got := Gather(Sources{
		Started: began,
		Server: server{
			Time: moment, Version: "v1", Draining: true, Connections: 4,
			Builds: []dispatch.BuildStatus{
				{Derivation: "first", Phase: "Queued", Since: since, Waiting: "stale"},
				{Derivation: "running", Name: "r", System: "x86_64-linux", Features: []string{"kvm"}, Phase: "Building", Builder: "b/up", Since: began, PhaseSince: since, Clients: 2, Lost: []string{"b/down"}},
				{Derivation: "next", Phase: "Queued", Since: began},
				{Derivation: "opening", Phase: "Queued", Since: moment, Waiting: "opens a session"},
				// An equal derivation that is not shared.
				{Derivation: "first", Phase: "Queued", Since: moment},
			},
		},
		Ledger: ledger{
			Now: moment,
			Builders: []scheduler.Builder{
				{ID: "b/up", Systems: []string{"x86_64-linux"}, Supported: []string{"kvm"}, Mandatory: []string{"big"}, Slots: 4, Speed: 2, Running: 3, Orphaned: 1},
				{ID: "b/down", Down: "unreachable", Since: since, Cordon: &scheduler.Cordon{Reason: "swap"}},
				{ID: "b/away", Cordon: &scheduler.Cordon{Reason: "swap", Until: moment.Add(time.Hour)}},
				{ID: "b/back", Cordon: &scheduler.Cordon{Reason: "swap", Until: since}},
			},
			Queue: []scheduler.Queued{
				{Label: "first", Waiting: scheduler.Waiting{Class: kvm, Ahead: 1, Busy: 3, Slots: 4}},
				{Label: "next", Waiting: scheduler.Waiting{Class: kvm, Busy: 3, Slots: 4}},
				{Label: "first", Waiting: scheduler.Waiting{Class: kvm, Ahead: 2, Busy: 3, Slots: 4}},
			},
		},
		Fleet: pools{{Builder: "b/up", Connections: 1, BulkConnections: 2, Handshakes: 3, BusySessions: 4, IdleSessions: 5, SessionLimit: 6}},
		Spool: store{Paths: 1, Pinned: 2, Bytes: 3, MaxBytes: 4, Evictions: 5, Refusals: 6, Failures: 7},
	})
	const why = "waiting for an x86_64-linux builder with kvm: "
	want := Document{
		Time: moment, Version: "v1", Started: began, Stopping: true, ClientConnections: 4,
		Builders: []Builder{
			{
				ID: "b/up", State: StateHealthy, Systems: []string{"x86_64-linux"}, SupportedFeatures: []string{"kvm"}, MandatoryFeatures: []string{"big"},
				Slots: 4, Used: 3, Orphaned: 1, SpeedFactor: 2,
				Connections: Connections{Interactive: 1, Bulk: 2, Handshakes: 3}, Sessions: Sessions{Busy: 4, Idle: 5, PerConnection: 6},
			},
			{ID: "b/down", State: StateDown, Reason: "unreachable", Since: since},
			{ID: "b/away", State: StateCordoned, Reason: "swap", Until: moment.Add(time.Hour)},
			{ID: "b/back", State: StateHealthy},
		},
		Running: []Build{{
			Derivation: "running", Name: "r", System: "x86_64-linux", Features: []string{"kvm"}, Phase: "Building", Builder: "b/up",
			Since: began, PhaseSince: since, Clients: 2, Lost: []string{"b/down"},
		}},
		Waiting: []Build{
			{Derivation: "next", Phase: "Queued", Since: began, Position: 1, Reason: why + "3/4 slots busy"},
			{Derivation: "opening", Phase: "Queued", Since: moment, Position: 1, Reason: "opens a session"},
			{Derivation: "first", Phase: "Queued", Since: since, Position: 2, Reason: why + "1 ahead, 3/4 slots busy"},
			{Derivation: "first", Phase: "Queued", Since: moment, Position: 3, Reason: why + "2 ahead, 3/4 slots busy"},
		},
		Spool: Spool{Paths: 1, InUse: 2, Bytes: 3, MaxBytes: 4, Evictions: 5, Refusals: 6, Failures: 7},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
}
