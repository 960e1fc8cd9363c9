// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package roster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

func TestWhy(t *testing.T) {
	t.Parallel()
	type change = func(*v1alpha1.NixBuilder)
	healthy := func(name string, c change) v1alpha1.NixBuilder { return builder(name, v1alpha1.EndpointHealthy, c) }
	cordoned := func(b *v1alpha1.NixBuilder) { b.Spec.Cordon = builders.MakeCordon("disk", time.Time{}) }
	tests := map[string]struct {
		builders []v1alpha1.NixBuilder
		system   string
		features []string
		want     Outcome
		choices  []string
		others   map[string][]string // types of obstacles
	}{
		"nobody": {nil, "x86_64-linux", nil, Nowhere, nil, nil},
		"one": {
			[]v1alpha1.NixBuilder{healthy("one", nil)}, "x86_64-linux", []string{"kvm"}, Builds, []string{"one/a"}, nil,
		},
		"the one that does more at once, or faster, is preferred": {
			[]v1alpha1.NixBuilder{
				healthy("slow", nil),
				healthy("fast", func(b *v1alpha1.NixBuilder) { b.Spec.SpeedFactor = 3 }),
				healthy("large", func(b *v1alpha1.NixBuilder) { b.Spec.MaxJobs = 8 }),
			}, "x86_64-linux", nil, Builds, []string{"fast/a", "large/a", "slow/a"}, nil,
		},
		"suspect ones are in use": {
			[]v1alpha1.NixBuilder{builder("one", v1alpha1.EndpointSuspect, nil)}, "x86_64-linux", nil, Builds, []string{"one/a"}, nil,
		},
		"out of use": {
			[]v1alpha1.NixBuilder{builder("one", v1alpha1.EndpointUnhealthy, nil)}, "x86_64-linux", nil, Waits, nil,
			map[string][]string{"one/a": {OutOfUse}},
		},
		"not probed yet": {
			[]v1alpha1.NixBuilder{builder("one", v1alpha1.EndpointUnknown, nil)}, "x86_64-linux", nil, Waits, nil,
			map[string][]string{"one/a": {NotProbed}},
		},
		"cordoned, and another lacks the system": {
			[]v1alpha1.NixBuilder{
				healthy("one", cordoned),
				healthy("two", func(b *v1alpha1.NixBuilder) {
					b.Spec.Systems = []string{"aarch64-linux"}
					b.Status.Endpoints[0].Systems = b.Spec.Systems
				}),
			}, "x86_64-linux", nil, Waits, nil,
			map[string][]string{"one/a": {Cordoned}, "two/a": {SystemMissing}},
		},
		"a cordon that is over": {
			[]v1alpha1.NixBuilder{healthy("one", func(b *v1alpha1.NixBuilder) { b.Spec.Cordon = builders.MakeCordon("disk", now) })},
			"x86_64-linux", nil, Builds, []string{"one/a"}, nil,
		},
		"everything at once": {
			[]v1alpha1.NixBuilder{builder("one", v1alpha1.EndpointUnhealthy, func(b *v1alpha1.NixBuilder) {
				cordoned(b)
				b.Spec.MandatoryFeatures = []string{"gpu"}
			})}, "aarch64-linux", []string{"big-parallel"}, Nowhere, nil,
			map[string][]string{"one/a": {SystemMissing, FeatureMissing, FeatureMandatory, Cordoned, OutOfUse}},
		},
		"refuted": {
			[]v1alpha1.NixBuilder{healthy("one", func(b *v1alpha1.NixBuilder) {
				b.Spec.Systems = []string{"x86_64-linux", "aarch64-linux"}
				b.Spec.SupportedFeatures = []string{"kvm"}
				status := &b.Status.Endpoints[0]
				status.RefutedSystems, status.RefutedFeatures, status.Features = []string{"aarch64-linux"}, []string{"kvm"}, nil
			})}, "aarch64-linux", []string{"kvm"}, Nowhere, nil,
			map[string][]string{"one/a": {SystemRefuted, FeatureRefuted}},
		},
		"mandatory features that are required": {
			[]v1alpha1.NixBuilder{healthy("one", func(b *v1alpha1.NixBuilder) { b.Spec.MandatoryFeatures = []string{"gpu"} })},
			"x86_64-linux", []string{"gpu"}, Builds, []string{"one/a"}, nil,
		},
		"a mandatory feature that it lacks": {
			[]v1alpha1.NixBuilder{healthy("one", func(b *v1alpha1.NixBuilder) {
				b.Spec.MandatoryFeatures = []string{"gpu"}
				b.Status.Endpoints[0].RefutedFeatures = []string{"gpu"}
			})}, "x86_64-linux", []string{"gpu"}, Nowhere, nil,
			map[string][]string{"one/a": {FeatureRefuted}},
		},
		"not accepted": {
			[]v1alpha1.NixBuilder{healthy("one", func(b *v1alpha1.NixBuilder) { b.Status = v1alpha1.NixBuilderStatus{} })},
			"x86_64-linux", nil, Nowhere, nil,
			map[string][]string{"one/a": {NotAccepted}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := Why(tc.builders, "ci", tc.system, tc.features, now)
			if got.Outcome != tc.want {
				t.Errorf("outcome %s, want %s", got.Outcome, tc.want)
			}
			var choices []string
			for _, c := range got.Choices {
				choices = append(choices, c.Machine)
			}
			if diff := cmp.Diff(tc.choices, choices); diff != "" {
				t.Errorf("choices (-want +got):\n%s", diff)
			}
			var others map[string][]string
			for _, other := range got.Others {
				if others == nil {
					others = map[string][]string{}
				}
				for _, obstacle := range other.Obstacles {
					others[other.Machine] = append(others[other.Machine], obstacle.Type)
				}
			}
			if diff := cmp.Diff(tc.others, others); diff != "" {
				t.Errorf("others (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhyInWords(t *testing.T) {
	t.Parallel()
	list := []v1alpha1.NixBuilder{
		builder("good", v1alpha1.EndpointHealthy, nil), builder("also", v1alpha1.EndpointHealthy, nil), builder("sick", v1alpha1.EndpointUnhealthy, nil),
	}
	const message = "a (doubted.example:22): declared system x86_64-linux is not in the builder's own configuration"
	doubted := builder("doubted", v1alpha1.EndpointHealthy, func(b *v1alpha1.NixBuilder) {
		b.Status.Endpoints[0].Reason, b.Status.Endpoints[0].Message = "SystemsNotConfirmed", message
	})
	elsewhere := builder("doubted", v1alpha1.EndpointHealthy, func(b *v1alpha1.NixBuilder) {
		b.Status.Endpoints[0].Reason = "TrustUnknown"
		b.Status.Conditions = append(b.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionSystemsVerified, Status: metav1.ConditionUnknown, Reason: "SystemsNotConfirmed", Message: message,
		})
	})
	const wantDoubted = `A build for x86_64-linux goes to doubted/a.
NAME        JOBS   SPEED   DOUBT
doubted/a   4      1       ` + message + "\n"
	tests := map[string]struct {
		builders []v1alpha1.NixBuilder
		features []string
		want     string
	}{
		"goes where there is a doubt":        {[]v1alpha1.NixBuilder{doubted}, nil, wantDoubted},
		"the doubt is in the condition only": {[]v1alpha1.NixBuilder{elsewhere}, nil, wantDoubted},
		"goes somewhere": {list[:1], []string{"kvm"}, `A build for x86_64-linux with kvm goes to good/a.
NAME     JOBS   SPEED
good/a   4      1
`},
		"waits": {list[2:], nil, `A build for x86_64-linux waits: the machines for it cannot be used now.

Not to:
  sick/a
    it is out of use (ConnectionRefused): a: start sshd
`},
		"goes nowhere": {list[2:], []string{"gpu"}, `A build for x86_64-linux with gpu goes nowhere: no machine in namespace ci does such builds. Nix builds it where it runs, or fails.

Not to:
  sick/a
    it does not offer feature gpu
    it is out of use (ConnectionRefused): a: start sshd
`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := printed(Why(tc.builders, "ci", "x86_64-linux", tc.features, now).Print)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
