// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package roster

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

var now = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)

func ago(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(-d)} }

// builder has one machine "a" in that state, with the means to be listed.
func builder(name string, state v1alpha1.EndpointState, change func(*v1alpha1.NixBuilder)) v1alpha1.NixBuilder {
	b := builders.MakeNixBuilder(name).Namespace("ci").Endpoint("a", name+".example").
		Condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted").
		EndpointStatus(v1alpha1.EndpointStatus{
			Name: "a", Address: name + ".example:22", State: state, Reason: "AllStepsPassed", Systems: []string{"x86_64-linux"},
			Features: []string{"kvm"}, MaxJobs: 4, NixVersion: "2.34.8", Credential: "builder-key", LastTransitionTime: ago(5 * time.Minute),
		}).Obj()
	if state == v1alpha1.EndpointUnhealthy {
		status := &b.Status.Endpoints[0]
		status.Reason, status.Message, status.FailedCondition = "ConnectionRefused", "a: start sshd", v1alpha1.ConditionReachable
		status.LastHealthyTime = ago(time.Hour)
	}
	if change != nil {
		change(b)
	}
	return *b
}

func printed(print func(*show.Printer)) string {
	var out bytes.Buffer
	print(show.New(&out, os.Getenv))
	return out.String()
}

func TestRoster(t *testing.T) {
	t.Parallel()
	list := []v1alpha1.NixBuilder{
		builder("sick", v1alpha1.EndpointUnhealthy, nil),
		builder("good", v1alpha1.EndpointHealthy, func(b *v1alpha1.NixBuilder) {
			b.Spec.MandatoryFeatures = []string{"gpu"}
			b.Spec.Cordon = builders.MakeCordon("new disk", time.Time{})
		}),
		builder("moved", v1alpha1.EndpointHealthy, func(b *v1alpha1.NixBuilder) {
			b.Spec.Endpoints[0].Host, b.Spec.Systems = "other.example", []string{"aarch64-linux"}
		}),
		builder("double", v1alpha1.EndpointHealthy, func(b *v1alpha1.NixBuilder) {
			b.Status = v1alpha1.NixBuilderStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionFalse, Reason: "DuplicateEndpoint", Message: "two"}}}
		}),
	}
	want := `NAME       ADDRESS             STATE       SINCE   REASON              SYSTEMS         FEATURES   JOBS   NIX      KEY           CORDON
double/a   double.example:22   Unknown     -       DuplicateEndpoint   -               -          -      -        -             -
good/a     good.example:22     Healthy     5m      AllStepsPassed      x86_64-linux    kvm,gpu!   4      2.34.8   builder-key   new disk
moved/a    other.example:22    Unknown     -       -                   aarch64-linux   -          -      -        -             -
sick/a     sick.example:22     Unhealthy   5m      ConnectionRefused   x86_64-linux    kvm        4      2.34.8   builder-key   -
`
	got := printed(func(p *show.Printer) { New(list, now).Print(p, false, now) })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got = printed(func(p *show.Printer) { New(list[:1], now).Print(p, true, now) })
	if !strings.HasPrefix(got, "NAMESPACE   NAME") || !strings.Contains(got, "\nci          sick/a") {
		t.Errorf("with namespaces:\n%s", got)
	}
}

func TestUnserved(t *testing.T) {
	t.Parallel()
	cordon := func(b *v1alpha1.NixBuilder) { b.Spec.Cordon = builders.MakeCordon("disk", time.Time{}) }
	one := builder("one", v1alpha1.EndpointHealthy, cordon)
	tests := map[string]struct {
		others []v1alpha1.NixBuilder
		want   []string
	}{
		"alone":                        {nil, []string{"x86_64-linux"}},
		"another is in use":            {[]v1alpha1.NixBuilder{builder("two", v1alpha1.EndpointSuspect, nil)}, nil},
		"another is out of use":        {[]v1alpha1.NixBuilder{builder("two", v1alpha1.EndpointUnhealthy, nil)}, []string{"x86_64-linux"}},
		"another is cordoned, too":     {[]v1alpha1.NixBuilder{builder("two", v1alpha1.EndpointHealthy, cordon)}, []string{"x86_64-linux"}},
		"another is for somebody else": {[]v1alpha1.NixBuilder{builder("two", v1alpha1.EndpointHealthy, func(b *v1alpha1.NixBuilder) { b.Namespace = "nightly" })}, []string{"x86_64-linux"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := New(append(tc.others, one), now).Unserved("ci", "one", "")
			if diff := cmp.Diff(tc.want, got); diff != "" && len(tc.want)+len(got) > 0 {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	list := []v1alpha1.NixBuilder{builder("good", v1alpha1.EndpointHealthy, nil), builder("sick", v1alpha1.EndpointUnhealthy, nil)}
	content, err := machines.Desired(list, now)
	if err != nil {
		t.Fatal(err)
	}
	const leftOut = "# sick/a is left out: out of use (ConnectionRefused), and others do its builds or were healthy after it\n"
	line := content.Data[machines.KeyMachines]
	tests := map[string]struct {
		data        map[string]string
		published   bool
		wantCurrent bool
		want        string
	}{
		"current":       {content.Data, true, true, line + leftOut},
		"not current":   {map[string]string{machines.KeyMachines: "# none\n"}, true, false, "# none\n# Not current: "},
		"not published": {nil, false, false, line + "# Not published: there is no ConfigMap nix-machines in namespace ci."},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, err := NewFile(list, "ci", tc.data, tc.published, now)
			if err != nil {
				t.Fatal(err)
			}
			got := printed(f.Print)
			if f.Current != tc.wantCurrent || !strings.HasPrefix(got, tc.want) || !strings.HasSuffix(got, leftOut) {
				t.Errorf("current: %t\n%s", f.Current, got)
			}
		})
	}
}

// A file is waited for, but not for ever, and not where nobody will write one.
func TestSettle(t *testing.T) {
	t.Parallel()
	some := []Verdict{{Machine: "one/a"}}
	tests := map[string]struct {
		machines []Verdict
		current  time.Duration // when it becomes so
		want     bool
		wantTook time.Duration
	}{
		"current":         {some, 0, true, 0},
		"current soon":    {some, 2500 * time.Millisecond, true, 3 * time.Second},
		"never current":   {some, time.Hour, false, 5 * time.Second},
		"nothing to wait": {nil, time.Hour, false, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				started := time.Now()
				read := func(context.Context) (*File, error) {
					return &File{Machines: tc.machines, Current: time.Since(started) >= tc.current}, nil
				}
				f, err := Settle(t.Context(), read, 5*time.Second, time.Second)
				if took := time.Since(started); err != nil || f.Current != tc.want || took != tc.wantTook {
					t.Errorf("%+v after %s, %v", f, took, err)
				}
			})
		})
	}
}

func TestFileOfNobody(t *testing.T) {
	t.Parallel()
	f, err := NewFile(nil, "ci", nil, false, now)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := printed(f.Print), "# There are no NixBuilders in namespace ci.\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
