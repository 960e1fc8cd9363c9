// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// A jump host that dies takes the machines behind it out of use within seconds, long
// before enough probes have failed: the connections kept through it tell.
func TestJumpHostDies(t *testing.T) {
	s := startSite(t, &site{keeps: true})
	s.startSpare(t)
	far := &farSite{}
	p := s.admit(t, far.behind(cause{name: "jump-dies"}), nixlab.Newest)
	p.awaitWell()
	p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) {
		spec.Probe.IntervalSeconds, spec.Probe.FailureThreshold = 60, 5
	})
	p.awaitWell()

	began := time.Now()
	far.jump.Kill()
	p.awaitIll(diagnosis{condition: v1alpha1.ConditionReachable, reason: "JumpHostUnreachable"}.withDefaults())
	took := time.Since(began)
	t.Logf("out of use %v after the jump host's end", took)
	if took > 20*time.Second { // 5 s on a machine that does nothing else
		t.Errorf("out of use only after %v", took)
	}

	if err := far.jump.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.awaitWell()
}
