// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
)

// notAccepted makes condition Accepted False.
func notAccepted(b *v1alpha1.NixBuilder) {
	b.Status.Conditions = []metav1.Condition{{
		Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionFalse, Reason: "DuplicateEndpoint", Message: "two of it",
	}}
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	never := down("a", 0)
	never.LastHealthyTime = nil
	refuted := healthy("a")
	refuted.RefutedSystems = []string{"x86_64-linux"}
	refuted.Reason = "CanaryFailed"
	featureless := healthy("a")
	featureless.RefutedFeatures = []string{"kvm"}
	tests := map[string]struct {
		builders []*wrapper
		wantLine bool
		wantWhy  string // of the first machine; part of it
	}{
		"healthy":            {[]*wrapper{one("a", healthy(""))}, true, ""},
		"suspect":            {[]*wrapper{one("a", suspect(""))}, true, ""},
		"not looked at yet":  {[]*wrapper{one("a", healthy("")).Change(func(b *v1alpha1.NixBuilder) { b.Name = "new" })}, false, "no operator has looked"},
		"not accepted":       {[]*wrapper{one("a", healthy("")).Change(notAccepted)}, false, "not accepted (DuplicateEndpoint): two of it"},
		"deleted":            {[]*wrapper{one("a", healthy("")).Change(func(b *v1alpha1.NixBuilder) { b.DeletionTimestamp = ago(0) })}, false, "being deleted"},
		"cordoned":           {[]*wrapper{one("a", healthy("")).Cordon("disk", time.Time{})}, false, "cordoned: disk"},
		"cordoned for now":   {[]*wrapper{one("a", healthy("")).Cordon("disk", now.Add(time.Hour))}, false, "cordoned until "},
		"host key":           {[]*wrapper{one("a", failing("", v1alpha1.ConditionHostKeyVerified))}, false, "host key is not verified"},
		"credentials":        {[]*wrapper{one("a", failing("", v1alpha1.ConditionCredentialsValid))}, false, "credentials are not valid"},
		"refuted":            {[]*wrapper{one("a", refuted)}, false, "builds for none of its systems (CanaryFailed)"},
		"full disk":          {[]*wrapper{one("a", unfit("DiskPressure"))}, false, "its disk is full"},
		"lacks a feature":    {[]*wrapper{one("a", featureless).MandatoryFeatures("kvm")}, false, "it lacks mandatory features: kvm"},
		"never healthy":      {[]*wrapper{one("a", never)}, false, "was never healthy"},
		"others are in use":  {[]*wrapper{one("a", down("", time.Minute)), one("b", healthy(""))}, false, "others do its builds"},
		"nobody else is":     {[]*wrapper{one("a", down("", time.Minute))}, true, "nobody else does its builds"},
		"for one system":     {[]*wrapper{one("a", down("", time.Minute)).Systems("x86_64-linux", "aarch64-linux"), one("b", healthy(""))}, true, "out of use (ConnectionRefused), but nobody else builds for aarch64-linux; others do for x86_64-linux"},
		"without a host key": {[]*wrapper{linux("a").Endpoint("a", "x.example").TrustOnFirstUse().EndpointStatus(healthy("a"))}, false, "no host key is known"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var list []v1alpha1.NixBuilder
			for _, w := range tc.builders {
				if b := w.Obj(); b.Name != "new" && b.Status.Condition(v1alpha1.ConditionAccepted) == nil {
					accept(w)
				}
				list = append(list, *w.Obj())
			}
			got := Verdicts(list, now)
			if len(got) != len(list) {
				t.Fatalf("%d verdicts for %d machines: %+v", len(got), len(list), got)
			}
			if (got[0].Line != "") != tc.wantLine || !strings.Contains(got[0].Why, tc.wantWhy) || tc.wantWhy == "" && got[0].Why != "" {
				t.Errorf("%+v, want a line: %t, because: %s", got[0], tc.wantLine, tc.wantWhy)
			}
			expectAgreement(t, list, got)
		})
	}
}

// expectAgreement compares the lines of verdicts with the machines file.
func expectAgreement(t *testing.T, list []v1alpha1.NixBuilder, verdicts []Verdict) {
	t.Helper()
	content, err := Desired(list, now)
	if err != nil {
		t.Fatal(err)
	}
	var want, lines []string
	for line := range strings.Lines(content.Data[KeyMachines]) {
		if !strings.HasPrefix(line, "#") {
			want = append(want, strings.TrimSpace(line))
		}
	}
	for _, v := range verdicts {
		if v.Line != "" {
			lines = append(lines, v.Line)
		}
	}
	slices.Sort(want)
	slices.Sort(lines)
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("lines of file and verdicts (-file +verdicts):\n%s", diff)
	}
	document := Inventory(list, now)
	for _, e := range document.Builders {
		if !slices.ContainsFunc(verdicts, func(v Verdict) bool { return v.Builder+"/"+v.Endpoint == e.ID() }) {
			t.Errorf("no verdict about %s", e.ID())
		}
	}
}
