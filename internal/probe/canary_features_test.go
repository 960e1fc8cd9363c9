// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// featured is a daemon with some features, which notes what builds require.
type featured struct {
	has []string
	// oldWords has it refuse in the words of Nix 2.8 to 2.28.
	oldWords bool
	// instead is what comes of builds that require a feature, if not nil.
	instead map[string]*daemon.BuildResult

	mu     sync.Mutex
	builds []string
}

func (f *featured) build(_ context.Context, b *daemontest.Build) *daemon.BuildResult {
	required, err := b.Derivation.RequiredSystemFeatures()
	if err != nil {
		return &daemon.BuildResult{Status: daemon.StatusMiscFailure, ErrorMessage: err.Error()}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.builds = append(f.builds, strings.Join(required, " "))
	for _, feature := range required {
		if result := f.instead[feature]; result != nil {
			return result
		}
	}
	if len(without(required, f.has)) == 0 {
		return runCanary(b)
	}
	message := fmt.Sprintf("Cannot build '%s'.\nReason: \x1b[31;1mmissing system features\x1b[0m\nRequired features: {%s}\nAvailable features: {%s}",
		b.DrvPath, strings.Join(required, ", "), strings.Join(f.has, ", "))
	if f.oldWords {
		message = fmt.Sprintf("\x1b[31;1merror:\x1b[0m a 'x86_64-linux' with features {%s} is required to build '%s', but I am a 'x86_64-linux' with features {\x1b[35;1m%s\x1b[0m}",
			strings.Join(required, ", "), b.DrvPath, strings.Join(f.has, ", "))
	}
	return &daemon.BuildResult{Status: daemon.StatusInputRejected, ErrorMessage: message}
}

// taken returns what was required since the last call.
func (f *featured) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.builds = nil }()
	return f.builds
}

func (f *featured) target(t *testing.T, features ...string) Target {
	t.Helper()
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: newNix(t, daemontest.Options{Build: f.build}).exec}))
	target.Canary, target.Features = true, features
	return target
}

func TestCanaryOfFeatures(t *testing.T) {
	t.Parallel()
	broken := &daemon.BuildResult{Status: daemon.StatusMiscFailure, ErrorMessage: "error: feature 'auto-allocate-uids' is not enabled"}
	tests := map[string]struct {
		daemon       *featured
		features     []string
		noDiscovery  bool
		want         Reason
		wantRefuted  []string
		wantRequired []string
		wantWords    []string
	}{
		"all there, seen by the daemon alone": {
			daemon: &featured{has: []string{"kvm", "big-parallel"}}, features: []string{"big-parallel", "kvm"},
			want: ReasonSystemsVerified, wantRequired: []string{"", "big-parallel kvm"},
		},
		"one lacks": {
			daemon: &featured{has: []string{"big-parallel"}}, features: []string{"big-parallel", "kvm"},
			want: ReasonFeaturesRefuted, wantRefuted: []string{"kvm"}, wantRequired: []string{"", "big-parallel kvm", "big-parallel", "kvm"},
			wantWords: []string{"require kvm (it has: big-parallel)", "system-features", "spec.supportedFeatures"},
		},
		"the only one lacks, in older words": {
			daemon: &featured{has: []string{"benchmark", "nixos-test"}, oldWords: true}, features: []string{"kvm"},
			want: ReasonFeaturesRefuted, wantRefuted: []string{"kvm"}, wantRequired: []string{"", "kvm"}, wantWords: []string{"(it has: benchmark, nixos-test)"},
		},
		"none at all": {
			daemon: &featured{}, features: []string{"a", "b"}, noDiscovery: true,
			want: ReasonFeaturesRefuted, wantRefuted: []string{"a", "b"}, wantRequired: []string{"", "a b", "a", "b"}, wantWords: []string{"(it has: none)"},
		},
		"those that the builder names": {
			daemon: &featured{has: []string{"benchmark", "nixos-test"}},
			want:   ReasonFeaturesRefuted, wantRefuted: []string{"big-parallel"},
			wantRequired: []string{"", "benchmark big-parallel nixos-test", "benchmark", "big-parallel", "nixos-test"},
		},
		"a demanding one that cannot be tried": {
			daemon:   &featured{has: []string{"uid-range", "big-parallel"}, instead: map[string]*daemon.BuildResult{"uid-range": broken}},
			features: []string{"big-parallel", "uid-range"}, want: ReasonFeaturesNotConfirmed, wantRequired: []string{"", "big-parallel", "uid-range"},
		},
		"a demanding one that lacks": {
			daemon: &featured{has: []string{"big-parallel"}}, features: []string{"big-parallel", "recursive-nix"},
			want: ReasonFeaturesRefuted, wantRefuted: []string{"recursive-nix"}, wantRequired: []string{"", "big-parallel", "recursive-nix"},
		},
		"builds fail for other reasons": {
			daemon:   &featured{has: []string{"gpu", "big-parallel"}, instead: map[string]*daemon.BuildResult{"gpu": broken}},
			features: []string{"big-parallel", "gpu"}, want: ReasonFeaturesNotConfirmed, wantRequired: []string{"", "big-parallel gpu"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := tc.daemon.target(t, tc.features...)
			target.Discovery = !tc.noDiscovery
			result, known := probeOnce(t, target)
			got := result.Outcome(StepSystemsVerified)
			t.Log(got.Message)
			if got.Reason != tc.want {
				t.Errorf("got %+v, want %s", got, tc.want)
			}
			if failure, failed := result.Failure(); failed {
				t.Errorf("out of use: %+v", failure)
			}
			if diff := cmp.Diff(tc.wantRefuted, result.Facts.RefutedFeatures); diff != "" {
				t.Errorf("refuted (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantRequired, tc.daemon.taken()); diff != "" {
				t.Errorf("builds (-want +got):\n%s", diff)
			}
			for _, word := range tc.wantWords {
				if !strings.Contains(got.Message, word) {
					t.Errorf("%q lacks %q", got.Message, word)
				}
			}
			again, _ := probeAgain(t, target, known)
			if built := tc.daemon.taken(); built != nil || !slices.Equal(again.Outcomes, result.Outcomes) || !again.Facts.equal(result.Facts) {
				t.Errorf("the next probe builds %q, and finds %+v", built, again.Outcome(StepSystemsVerified))
			}
		})
	}
}

// What was refuted is tried again soon and comes back; what shows nothing changes
// nothing; other features are tried at once, and those that nobody declares forgotten.
func TestCanaryOfFeaturesAgain(t *testing.T) {
	t.Parallel()
	builder := &featured{has: []string{"big-parallel"}}
	target := builder.target(t, "kvm")
	_, known := probeOnce(t, target)
	if wait := known.canaries.due.Sub(known.canaries.ran); wait != canaryRetry {
		t.Errorf("tried again after %s", wait)
	}
	later := func() {
		known.canaries.ran = known.canaries.ran.Add(-canaryRetry)
		known.canaries.due = time.Now()
	}
	expect := func(want Reason, refuted ...string) {
		t.Helper()
		var result Result
		result, known = probeAgain(t, target, known)
		if got := result.Outcome(StepSystemsVerified); got.Reason != want || !slices.Equal(result.Facts.RefutedFeatures, refuted) {
			t.Errorf("got %+v, refuted %q", got, result.Facts.RefutedFeatures)
		}
	}
	later()
	builder.instead = map[string]*daemon.BuildResult{"kvm": {Status: daemon.StatusMiscFailure, ErrorMessage: "interrupted by the user"}}
	expect(ReasonFeaturesRefuted, "kvm")
	later()
	builder.instead, builder.has = nil, []string{"kvm"}
	expect(ReasonSystemsVerified)
	target.Features = []string{"benchmark"}
	expect(ReasonFeaturesRefuted, "benchmark")
	target.Features = []string{"kvm", "benchmark"}
	expect(ReasonFeaturesRefuted, "benchmark")
	target.Features = []string{"kvm"} // as the message advises
	builder.taken()
	expect(ReasonSystemsVerified)
	if built := builder.taken(); built != nil {
		t.Errorf("one feature less takes builds that require %q", built)
	}
	target.Canary, target.Features = false, []string{"benchmark"}
	expect(ReasonSystemsVerified)
}

// Systems and features that are refuted are both named.
func TestCanaryRefutesSystemsAndFeatures(t *testing.T) {
	t.Parallel()
	builder := &featured{}
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: newNix(t, daemontest.Options{Build: func(ctx context.Context, b *daemontest.Build) *daemon.BuildResult {
		if b.Derivation.Platform != "x86_64-linux" {
			return mismatch(b.Derivation.Platform)
		}
		return builder.build(ctx, b)
	}}).exec}))
	target.Canary, target.Systems, target.Features = true, []string{"aarch64-linux", "x86_64-linux"}, []string{"kvm"}
	result, _ := probeOnce(t, target)
	got := result.Outcome(StepSystemsVerified)
	if got.Reason != ReasonSystemsRefuted || !slices.Equal(result.Facts.Refuted, []string{"aarch64-linux"}) || !slices.Equal(result.Facts.RefutedFeatures, []string{"kvm"}) ||
		!strings.Contains(got.Message, "for aarch64-linux fails") || !strings.Contains(got.Message, "require kvm") {
		t.Errorf("%+v, %+v", got, result.Facts)
	}
}

func TestOfferedFeatures(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		"a 'x' with features {\x1b[35;1mkvm\x1b[0m} is required, but I am a 'x' with features {\x1b[35;1mbig-parallel, kvm\x1b[0m}": "big-parallel, kvm",
		"Required features: {a}\nAvailable features: {}":                "",
		"Required features: {a}\nAvailable features: {b,\x07, c d, e'}": "b",
		"nothing in braces": "", "}{": "", "{": "",
	} {
		if got := offeredFeatures(message); got != want {
			t.Errorf("%q: got %q, want %q", message, got, want)
		}
	}
}
