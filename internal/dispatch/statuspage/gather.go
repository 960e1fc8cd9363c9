// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package statuspage

import (
	"cmp"
	"slices"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
)

// Sources are asked for a [Document]. All are required.
type Sources struct {
	// Started is when the dispatcher was.
	Started time.Time
	Server  interface{ Status() dispatch.Status }
	Ledger  interface{ Status() scheduler.Status }
	Fleet   interface{ Stats() []fleet.Stats }
	Spool   interface{ Usage() spool.Usage }
}

// Gather asks sources for the present state. What they say is not of one instant: a
// build may have moved on between two answers.
func Gather(sources Sources) Document {
	server, ledger, usage := sources.Server.Status(), sources.Ledger.Status(), sources.Spool.Usage()
	d := Document{
		Time: server.Time, Version: server.Version, Started: sources.Started, Stopping: server.Draining,
		ClientConnections: server.Connections,
		Spool: Spool{
			Paths: usage.Paths, InUse: usage.Pinned, Bytes: usage.Bytes, MaxBytes: usage.MaxBytes,
			Evictions: usage.Evictions, Refusals: usage.Refusals, Failures: usage.Failures,
		},
	}
	pools := map[string]fleet.Stats{}
	for _, stats := range sources.Fleet.Stats() {
		pools[stats.Builder] = stats
	}
	for i := range ledger.Builders {
		b := &ledger.Builders[i]
		d.Builders = append(d.Builders, describe(b, pools[b.ID], ledger.Now))
	}
	d.Running, d.Waiting = split(server.Builds, ledger.Queue)
	return d
}

// describe is a builder as it is shown.
func describe(b *scheduler.Builder, pool fleet.Stats, now time.Time) Builder {
	shown := Builder{
		ID: b.ID, State: StateHealthy,
		Systems: b.Systems, SupportedFeatures: b.Supported, MandatoryFeatures: b.Mandatory,
		Slots: b.Slots, Used: b.Running, Orphaned: b.Orphaned, SpeedFactor: b.Speed,
		Connections: Connections{Interactive: pool.Connections, Bulk: pool.BulkConnections, Handshakes: pool.Handshakes},
		Sessions:    Sessions{Busy: pool.BusySessions, Idle: pool.IdleSessions, PerConnection: pool.SessionLimit},
	}
	switch {
	case b.Down != "":
		shown.State, shown.Reason, shown.Since = StateDown, b.Down, b.Since
	case b.Cordoned(now):
		shown.State, shown.Reason, shown.Until = StateCordoned, b.Cordon.Reason, b.Cordon.Until
	}
	return shown
}

// split tells builds that have a builder from those that wait for one, which it
// puts in the order in which they are served. The queue knows best why they wait.
func split(builds []dispatch.BuildStatus, queue []scheduler.Queued) (running, waiting []Build) {
	queued := map[string][]scheduler.Waiting{}
	for _, q := range queue {
		queued[q.Label] = append(queued[q.Label], q.Waiting)
	}
	for _, b := range builds {
		build := Build{
			Derivation: b.Derivation, Name: b.Name, System: b.System, Features: b.Features,
			Phase: b.Phase, Builder: b.Builder, Since: b.Since, PhaseSince: b.PhaseSince, Clients: b.Clients, Lost: b.Lost,
		}
		if b.Builder != "" {
			running = append(running, build)
			continue
		}
		build.Position, build.Reason = 1, b.Waiting
		if reasons := queued[b.Derivation]; len(reasons) > 0 {
			build.Position, build.Reason = reasons[0].Ahead+1, reasons[0].String()
			queued[b.Derivation] = reasons[1:]
		}
		waiting = append(waiting, build)
	}
	slices.SortStableFunc(waiting, func(a, b Build) int {
		return cmp.Or(cmp.Compare(a.Position, b.Position), a.Since.Compare(b.Since))
	})
	return running, waiting
}
