// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package doctor

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
)

// A doubt that names something to correct is in every headline, and changes no finding.
func TestDoubts(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		reasons    []string // of the machine's steps, one each
		wantDoubts int
		wantWord   string
	}{
		"none":                  {[]string{"Connected"}, 0, "all well"},
		"a system":              {[]string{"SystemsNotConfirmed"}, 1, "well, 1 doubt"},
		"a feature, and a word": {[]string{"TrustUnknown", "FeaturesNotConfirmed"}, 1, "well, 1 doubt"},
		"two":                   {[]string{"SystemsNotConfirmed", "FeaturesNotConfirmed"}, 2, "well, 2 doubts"},
		"what nobody can tell":  {[]string{"DiscoveryUnavailable"}, 0, "all well"},
		"what is wrong besides": {[]string{"ClockSkewed", "SystemsNotConfirmed"}, 1, "SOMETHING IS WRONG"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := linux("linux")
			endpoint := v1alpha1.ProbedEndpoint{Name: "a"}
			want := Well
			for _, reason := range tc.reasons {
				step := v1alpha1.ProbedStep{Type: "SystemsVerified", Status: "Unknown", Reason: reason}
				switch reason {
				case "Connected":
					step.Status = "True"
				case "ClockSkewed":
					step.Status, want = "False", Wrong
				}
				endpoint.Steps = append(endpoint.Steps, step)
			}
			object.Status.LastProbe = &v1alpha1.LastProbe{Endpoints: []v1alpha1.ProbedEndpoint{endpoint}}
			got := FromStatus(&object, nil, time.Now())
			if got.Finding != want || got.Doubts != tc.wantDoubts || got.Machines[0].Doubts != tc.wantDoubts {
				t.Errorf("finding %s, %d doubts, %d of the machine", got.Finding, got.Doubts, got.Machines[0].Doubts)
			}
			var out bytes.Buffer
			(&Report{Builders: []Builder{got}}).Print(show.New(&out, os.Getenv), false)
			for _, line := range []string{"ci/linux  ", "  a (linux.example:22)  "} {
				if !strings.Contains(out.String(), line+tc.wantWord+"\n") {
					t.Errorf("headlines:\n%s", out.String())
				}
			}
		})
	}
}

func TestSummaryOfDoubts(t *testing.T) {
	t.Parallel()
	doubted := []Step{{Type: "SystemsVerified", Status: "Unknown", Reason: "SystemsNotConfirmed"}}
	b := Builder{Machines: []Machine{{Steps: doubted}, {Steps: doubted}, {Problem: "it does not answer"}}}
	b.settle()
	report := Report{Builders: []Builder{b}}
	if got, want := report.summary(), "3 machines: 2 well, 1 not found out; 2 doubts"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Who asks about one machine is told about that one, and of what is wrong with all.
func TestOneMachine(t *testing.T) {
	t.Parallel()
	b := Builder{
		Steps: []Step{{Type: "Accepted", Status: "True"}},
		Machines: []Machine{
			{Name: "a", Steps: []Step{{Type: "Reachable", Status: "True"}}},
			{Name: "b", Steps: []Step{{Type: "Reachable", Status: "False"}}},
		},
	}
	b.settle()
	if b.keep(nil); len(b.Machines) != 2 || b.Finding != Wrong {
		t.Errorf("all of them: %+v", b)
	}
	if b.keep([]string{"a"}); len(b.Machines) != 1 || b.Machines[0].Name != "a" || b.Finding != Well {
		t.Errorf("one of them: %+v", b)
	}
}
