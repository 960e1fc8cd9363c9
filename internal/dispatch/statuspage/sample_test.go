// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package statuspage

import "time"

// moment is the time of the sample.
var moment = time.Date(2026, 8, 3, 14, 2, 11, 0, time.UTC)

// sample has one of everything.
func sample() Document {
	ago := func(d time.Duration) time.Time { return moment.Add(-d) }
	drv := func(hash, name string) string {
		return "/nix/store/" + hash + "m1bszi6g9iyh8rs0m4a2hgv3-" + name + ".drv"
	}
	return Document{
		Time: moment, Version: "v0.1.0", Started: ago(76*time.Hour + 12*time.Minute), ClientConnections: 9,
		Builders: []Builder{
			{
				ID: "linux/linux-1", State: StateHealthy, Systems: []string{"x86_64-linux", "i686-linux"},
				SupportedFeatures: []string{"kvm", "big-parallel"}, Slots: 8, Used: 5, Orphaned: 1, SpeedFactor: 2,
				Connections: Connections{Interactive: 1, Bulk: 2, Handshakes: 1}, Sessions: Sessions{Busy: 5, Idle: 2, PerConnection: 10},
			},
			{
				ID: "linux/linux-2", State: StateDown, Reason: "refuses connections", Since: ago(4 * time.Minute),
				Systems: []string{"x86_64-linux"}, Slots: 4, SpeedFactor: 1,
			},
			{
				ID: "mac/mac-1", State: StateCordoned, Reason: "disk swap", Until: ago(-2 * time.Hour), Systems: []string{"aarch64-darwin"},
				MandatoryFeatures: []string{"apple-sdk"}, Slots: 40, Used: 1, SpeedFactor: 1,
				Connections: Connections{Interactive: 1}, Sessions: Sessions{Busy: 1},
			},
		},
		Running: []Build{
			{
				Derivation: drv("h4s2k1lq", "openssl-3.5.1"), Name: "openssl-3.5.1", System: "x86_64-linux", Features: []string{"big-parallel"},
				Phase: "Building", Builder: "linux/linux-1", Since: ago(6 * time.Minute), PhaseSince: ago(5*time.Minute + 12*time.Second),
				Clients: 2, Lost: []string{"linux/linux-2"},
			},
			{
				Derivation: drv("v9p0xw3c", "hello-2.12"), Name: "hello-2.12", System: "x86_64-linux", Phase: "Uploading",
				Builder: "linux/linux-1", Since: ago(2 * time.Second), PhaseSince: ago(time.Second), Clients: 1,
			},
		},
		Waiting: []Build{{
			Derivation: drv("a77xw3cd", "nixos-test"), Name: "nixos-test", System: "aarch64-linux", Features: []string{"kvm"}, Phase: "Queued",
			Since: ago(10 * time.Minute), PhaseSince: ago(83 * time.Second), Clients: 1, Position: 1,
			Reason: "waiting for an aarch64-linux builder with kvm: none is known",
		}},
		Spool: Spool{Paths: 214, InUse: 12, Bytes: 1932735283, MaxBytes: 10 << 30, Evictions: 3},
	}
}
