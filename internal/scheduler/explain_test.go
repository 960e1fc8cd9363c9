// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"testing"
	"time"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	plain := NewClass("x86_64-linux", nil, nil)
	kvm := func(b *Builder) { b.Supported = []string{"kvm"} }
	orphaned := func(n int) func(*Builder) { return func(b *Builder) { b.Orphaned = n } }
	tests := map[string]struct {
		builders []Builder
		need     Class
		avoid    []string
		ahead    int
		want     string
	}{
		"busy": {
			[]Builder{linux("a", running(2)), linux("mac-2", down)}, plain, nil, 2,
			"waiting for an x86_64-linux builder: 2 ahead, 2/2 slots busy, mac-2 unreachable since 11:00",
		},
		"feature": {
			[]Builder{linux("a"), linux("k", kvm, down)}, Need("x86_64-linux", []string{"kvm"}), nil, 0,
			"waiting for an x86_64-linux builder with kvm: k unreachable since 11:00",
		},
		"unknown": {
			[]Builder{linux("a")}, Need("riscv64-linux", nil), nil, 0,
			"waiting for a riscv64-linux builder: none is known",
		},
		"cordon": {
			[]Builder{linux("a", cordon(Cordon{Reason: "disk swap", Until: noon.Add(30 * time.Hour)}))}, plain, nil, 0,
			"waiting for an x86_64-linux builder: a cordoned until Mar 5 18:00 (disk swap)",
		},
		"no slots": {
			[]Builder{linux("a", slots(0))}, plain, nil, 0,
			"waiting for an x86_64-linux builder: a has no slots",
		},
		"orphan": {
			[]Builder{linux("a", running(2), orphaned(1)), linux("b", running(2))}, plain, nil, 0,
			"waiting for an x86_64-linux builder: 4/4 slots busy, 1 of them perhaps still running a lost build",
		},
		"orphans": {
			[]Builder{linux("a", running(2), orphaned(1)), linux("b", running(2), orphaned(1))}, plain, nil, 0,
			"waiting for an x86_64-linux builder: 4/4 slots busy, 2 of them perhaps still running lost builds",
		},
		"avoided": {
			[]Builder{linux("a", running(1)), linux("b", running(2))}, plain, []string{"a"}, 0,
			"waiting for an x86_64-linux builder: 2/2 slots busy, a left out because this build failed there",
		},
		"many": {
			[]Builder{linux("a", down), linux("b", down), linux("c", down), linux("d", down), linux("e", down), linux("f", down)}, plain, nil, 0,
			"waiting for an x86_64-linux builder: a unreachable since 11:00, b unreachable since 11:00, " +
				"c unreachable since 11:00, d unreachable since 11:00, 2 more not usable",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := Request{Class: tc.need, Avoid: tc.avoid}
			got := Explain(Snapshot{Builders: tc.builders, Now: noon}, r, tc.ahead, noon).String()
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestWaitLimitErrorSaysWhatWasWaitedFor(t *testing.T) {
	t.Parallel()
	s := Snapshot{Builders: []Builder{linux("a", running(2)), linux("mac-2", down)}, Now: noon}
	err := &WaitLimitError{Limit: 10 * time.Minute, Waiting: Explain(s, anyLinux, 3, noon)}
	want := "waited 10m0s for an x86_64-linux builder, the limit set by --wait-timeout: " +
		"3 ahead, 2/2 slots busy, mac-2 unreachable since 11:00"
	if got := err.Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
