// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"slices"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// featureCauses are about features that the daemon itself refuses.
func featureCauses() []cause {
	return []cause{{
		name: "feature-refuted", title: "The daemon lacks a declared feature",
		means: "The feature has left the machine's line in the machines file; the machine stays in use for builds that do not require it. " +
			"Only a canary finds that out: `spec.probe.canary: Enabled`.",
		nixSays:  "error: a 'x86_64-linux' with features {benchmark} is required to build '…', but I am a 'x86_64-linux' with features {big-parallel}",
		mend:     "Add it to `system-features` in the machine's nix.conf and restart nix-daemon, or correct `spec.supportedFeatures` or `spec.mandatoryFeatures`.",
		versions: nixlab.Versions(),
		machine:  func(opts *nixlab.BuilderOptions) { opts.Features = []string{"big-parallel"} },
		spec: func(spec *v1alpha1.NixBuilderSpec) {
			spec.Probe.Canary, spec.SupportedFeatures = v1alpha1.CanaryEnabled, []string{"big-parallel"}
		},
		breaks: func(p *patient) {
			p.changeSpec(func(spec *v1alpha1.NixBuilderSpec) { spec.SupportedFeatures = []string{"benchmark", "big-parallel"} })
		},
		want: diagnosis{
			condition: v1alpha1.ConditionSystemsVerified, reason: "FeaturesRefuted",
			words: []string{"refuses builds that require benchmark (it has: big-parallel)", "add it to system-features in its nix.conf and restart nix-daemon", "correct spec.supportedFeatures or spec.mandatoryFeatures"},
			state: v1alpha1.EndpointHealthy, listed: true, ready: true, quiet: true,
		},
		remedy: func(p *patient, _ string) {
			p.expectLine(5, "big-parallel")
			p.nixConf("system-features = big-parallel benchmark")
			p.request()
			p.expectLine(5, "benchmark", "big-parallel")
		},
	}}
}

// kvmForRootOnly gives the machine a /dev/kvm that only root may open, and leaves it to
// Nix which features that makes: the daemon has kvm then, and the ssh user sees none.
const kvmForRootOnly = `
mkdir /tmp/dev && cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/ptmx /tmp/dev
mkdir /tmp/dev/pts /tmp/dev/shm && mount --bind /dev/pts /tmp/dev/pts
touch /tmp/dev/kvm && chmod 600 /tmp/dev/kvm && mount --rbind /tmp/dev /dev
sed -i /^system-features/d /etc/nix/nix.conf`

// What the daemon has and what the ssh user's configuration says are two things: only
// builds tell, and they tell both ways.
func TestFeaturesAreThoseOfTheDaemon(t *testing.T) {
	s := newLab(t)
	tests := map[string]struct {
		script      string // before the daemon starts
		features    []string
		canary      bool
		want        probe.Reason
		wantRefuted []string
	}{
		"kvm, seen by the daemon alone": {script: kvmForRootOnly, features: []string{"big-parallel", "kvm"}, canary: true, want: probe.ReasonSystemsVerified},
		"kvm, and no canary":            {script: kvmForRootOnly, features: []string{"kvm"}, want: probe.ReasonFeaturesNotConfirmed},
		"seen by nobody": {
			script: "sed -i /^system-features/d /etc/nix/nix.conf", features: []string{"big-parallel", "gpu"}, canary: true,
			want: probe.ReasonFeaturesRefuted, wantRefuted: []string{"gpu"},
		},
		"seen by the user alone": {
			script: "mkdir -p ~nixt/.config/nix && echo system-features = gpu big-parallel >~nixt/.config/nix/nix.conf", canary: true,
			want: probe.ReasonFeaturesRefuted, wantRefuted: []string{"big-parallel", "gpu"},
		},
		"those that Nix has by itself": {script: "sed -i /^system-features/d /etc/nix/nix.conf", canary: true, want: probe.ReasonSystemsVerified},
		"features that need more": {
			script:   "sed -i 's/^system-features.*/system-features = uid-range recursive-nix big-parallel/' /etc/nix/nix.conf",
			features: []string{"big-parallel", "recursive-nix", "uid-range"}, canary: true, want: probe.ReasonSystemsVerified,
		},
	}
	for _, version := range nixlab.Versions() {
		for name, tc := range tests {
			t.Run(string(version)+"/"+name, func(t *testing.T) {
				t.Parallel()
				host := strings.NewReplacer(" ", "-", ",", "", ".", "").Replace(name + "-" + string(version))
				builder := s.newBuilder(t, nixlab.BuilderOptions{Name: host, Version: version})
				run(t, builder, tc.script)
				if err := builder.RestartDaemon(t.Context()); err != nil {
					t.Fatal(err)
				}
				target := s.targetAt(t, builder)
				target.Features, target.Canary, target.Discovery = tc.features, tc.canary, true
				result := requester(t, target)("1")
				got := result.Outcome(probe.StepSystemsVerified)
				t.Log(got.Message)
				if got.Reason != tc.want || !slices.Equal(result.Facts.RefutedFeatures, tc.wantRefuted) {
					t.Errorf("got %+v, features %q, refuted %q", got, result.Facts.Features, result.Facts.RefutedFeatures)
				}
				if failure, failed := result.Failure(); failed {
					t.Errorf("out of use: %+v", failure)
				}
			})
		}
	}
}
