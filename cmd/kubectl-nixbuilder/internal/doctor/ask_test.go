// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

// fakeCluster has NixBuilders, and an operator that answers after a while.
type fakeCluster struct {
	builders []v1alpha1.NixBuilder
	// answer is how long the operator takes; negative: for ever.
	answer time.Duration
	// steps is what it finds at every endpoint.
	steps []v1alpha1.ProbedStep
	// vanish deletes the builder of that name when it is asked.
	vanish string
	// rival asks a moment after us.
	rival string
	// down is how long the API server lists nothing after it was asked.
	down time.Duration
	err  error

	asked map[string]time.Time
	token map[string]string
}

func (f *fakeCluster) List(_ context.Context, namespace string) ([]v1alpha1.NixBuilder, error) {
	var list []v1alpha1.NixBuilder
	for _, asked := range f.asked {
		if time.Since(asked) < f.down {
			return nil, errors.New("the API server is down")
		}
	}
	for _, b := range f.builders {
		if namespace != "" && b.Namespace != namespace || f.vanish == b.Name && f.asked[b.Name] != (time.Time{}) {
			continue
		}
		if f.asked[b.Name] != (time.Time{}) {
			b.Annotations = map[string]string{v1alpha1.ProbeRequestAnnotation: f.token[b.Name]}
		}
		if asked := f.asked[b.Name]; !asked.IsZero() && f.answer >= 0 && time.Since(asked) >= f.answer {
			b.Status.LastProbe = &v1alpha1.LastProbe{
				Request: f.token[b.Name],
				Steps:   []v1alpha1.ProbedStep{{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: "Accepted"}},
			}
			for _, e := range b.Spec.Endpoints {
				b.Status.LastProbe.Endpoints = append(b.Status.LastProbe.Endpoints, v1alpha1.ProbedEndpoint{Name: e.Name, Steps: f.steps})
			}
		}
		list = append(list, b)
	}
	return list, nil
}

func (f *fakeCluster) Patch(_ context.Context, key types.NamespacedName, _ types.PatchType, patch []byte) error {
	var object struct{ Metadata metav1.ObjectMeta }
	if err := json.Unmarshal(patch, &object); err != nil {
		return err
	}
	if f.asked == nil {
		f.asked, f.token = map[string]time.Time{}, map[string]string{}
	}
	f.asked[key.Name], f.token[key.Name] = time.Now(), object.Metadata.Annotations[v1alpha1.ProbeRequestAnnotation]
	if _, err := time.Parse(time.RFC3339Nano, f.token[key.Name]); err != nil || len(f.token[key.Name]) > 64 {
		return errors.New("the annotation is no time: " + string(patch))
	}
	if f.rival != "" {
		f.token[key.Name] = f.rival
	}
	return f.err
}

func (f *fakeCluster) Operator(context.Context, time.Time) string { return "look at its pods" }

// notes keeps what was shown.
type notes struct{ shown, noted []string }

func (n *notes) Show(text string) { n.shown = append(n.shown, text) }
func (n *notes) Note(text string) { n.noted = append(n.noted, text) }
func (n *notes) Clear()           {}

// linux is a NixBuilder with one machine in use.
func linux(name string) v1alpha1.NixBuilder {
	return *builders.MakeNixBuilder(name).Namespace("ci").Systems("x86_64-linux").Endpoint("a", name+".example").
		Condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted").
		Condition(v1alpha1.ConditionReady, metav1.ConditionTrue, "AllHealthy").
		EndpointStatus(v1alpha1.EndpointStatus{Name: "a", Address: name + ".example:22", State: v1alpha1.EndpointHealthy}).Obj()
}

func step(status metav1.ConditionStatus, reason string) []v1alpha1.ProbedStep {
	return []v1alpha1.ProbedStep{{Type: v1alpha1.ConditionReachable, Status: status, Reason: reason, Message: "do this", DurationMilliseconds: 12}}
}

func TestAsk(t *testing.T) {
	t.Parallel()
	two := []v1alpha1.NixBuilder{linux("two"), linux("one")}
	tests := map[string]struct {
		cluster  fakeCluster
		names    []string
		all      bool
		want     map[string]Finding
		wantErr  string
		wantNote bool
	}{
		"all are well":        {cluster: fakeCluster{builders: two, steps: step(metav1.ConditionTrue, "Connected")}, want: map[string]Finding{"one": Well, "two": Well}},
		"one by name":         {cluster: fakeCluster{builders: two, steps: step(metav1.ConditionTrue, "Connected")}, names: []string{"one"}, want: map[string]Finding{"one": Well}},
		"something is wrong":  {cluster: fakeCluster{builders: two, steps: step(metav1.ConditionFalse, "ConnectionRefused")}, want: map[string]Finding{"one": Wrong, "two": Wrong}},
		"unknown is not bad":  {cluster: fakeCluster{builders: two[:1], steps: step(metav1.ConditionUnknown, "TrustUnknown")}, want: map[string]Finding{"two": Well}},
		"no steps":            {cluster: fakeCluster{builders: two[:1]}, want: map[string]Finding{"two": Unclear}},
		"it takes its time":   {cluster: fakeCluster{builders: two[:1], answer: 50 * time.Second, steps: step(metav1.ConditionTrue, "Connected")}, want: map[string]Finding{"two": Well}, wantNote: true},
		"nobody answers":      {cluster: fakeCluster{builders: two, answer: -1}, want: map[string]Finding{"one": Unclear, "two": Unclear}, wantNote: true},
		"deleted meanwhile":   {cluster: fakeCluster{builders: two, vanish: "one", steps: step(metav1.ConditionTrue, "Connected")}, want: map[string]Finding{"one": Unclear, "two": Well}},
		"somebody else asks":  {cluster: fakeCluster{builders: two[:1], rival: "now", answer: 5 * time.Second, steps: step(metav1.ConditionTrue, "Connected")}, want: map[string]Finding{"two": Well}},
		"cluster is away":     {cluster: fakeCluster{builders: two[:1], down: 20 * time.Second, steps: step(metav1.ConditionTrue, "Connected")}, want: map[string]Finding{"two": Well}},
		"cluster stays away":  {cluster: fakeCluster{builders: two[:1], down: time.Hour}, wantErr: "the API server is down"},
		"not of this name":    {cluster: fakeCluster{builders: two}, names: []string{"three"}, wantErr: "no NixBuilder three in namespace ci"},
		"none here":           {cluster: fakeCluster{}, wantErr: "no NixBuilders in namespace ci (-A looks in all)"},
		"none anywhere":       {cluster: fakeCluster{}, all: true, wantErr: "there are no NixBuilders"},
		"asking is forbidden": {cluster: fakeCluster{builders: two, err: errors.New("you may not")}, wantErr: "you may not"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var n notes
				asking := Asking{Namespace: "ci", Names: tc.names, Timeout: time.Minute, Hint: 10 * time.Second, Poll: time.Second}
				if tc.all {
					asking.Namespace = ""
				}
				report, err := Ask(t.Context(), &tc.cluster, asking, &n)
				if tc.wantErr != "" {
					if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
						t.Errorf("error %v, want %s", err, tc.wantErr)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				got := map[string]Finding{}
				for _, b := range report.Builders {
					got[b.Name] = b.Finding
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if (len(n.noted) == 1) != tc.wantNote {
					t.Errorf("notes %q", n.noted)
				}
			})
		})
	}
}

func TestAskIsInterrupted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := Ask(ctx, &fakeCluster{builders: []v1alpha1.NixBuilder{linux("one")}, answer: -1}, Asking{Timeout: time.Hour, Hint: time.Hour, Poll: time.Second}, &notes{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

func TestFindings(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		findings []Finding
		want     Finding
	}{
		"nothing":            {nil, Well},
		"well":               {[]Finding{Well, Well}, Well},
		"unclear":            {[]Finding{Well, Unclear}, Unclear},
		"wrong goes first":   {[]Finding{Unclear, Wrong, Well}, Wrong},
		"wrong before, too":  {[]Finding{Wrong, Unclear}, Wrong},
		"wrong among others": {[]Finding{Well, Wrong}, Wrong},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r Report
			for _, finding := range tc.findings {
				r.Builders = append(r.Builders, Builder{Finding: finding})
			}
			if got := r.Finding(); got != tc.want {
				t.Errorf("Finding = %s, want %s", got, tc.want)
			}
		})
	}
}

// Without a usable Secret there is nothing to probe with, which is not to be well.
func TestNotProbed(t *testing.T) {
	t.Parallel()
	object := linux("linux")
	object.Status.LastProbe = &v1alpha1.LastProbe{Steps: []v1alpha1.ProbedStep{
		{Type: "CredentialsValid", Status: "False", Reason: "SecretNotFound", Message: "make the Secret"},
	}}
	want := `ci/linux  SOMETHING IS WRONG
  CredentialsValid  WRONG               SecretNotFound
    make the Secret
  a (linux.example:22)  not found out
    not probed, because of what is wrong above
`
	var out bytes.Buffer
	report := Report{Builders: []Builder{FromStatus(&object, nil, time.Now())}}
	report.Print(show.New(&out, os.Getenv), false)
	if diff := cmp.Diff(want, out.String()); diff != "" || report.Finding() != Wrong {
		t.Errorf("%s (-want +got):\n%s", report.Finding(), diff)
	}
}

// What no step says, the summary of the operator does; but not what somebody wants so.
func TestSummaryOfTheOperator(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status metav1.ConditionStatus
		reason string
		step   metav1.ConditionStatus
		want   Finding
		told   bool
	}{
		"ready":                   {metav1.ConditionTrue, v1alpha1.ReasonAllHealthy, metav1.ConditionUnknown, Well, false},
		"no system is known":      {metav1.ConditionFalse, v1alpha1.ReasonSystemsUnknown, metav1.ConditionUnknown, Wrong, true},
		"a step says what it is":  {metav1.ConditionFalse, "DiskPressure", metav1.ConditionFalse, Wrong, false},
		"somebody has cordoned":   {metav1.ConditionFalse, v1alpha1.ReasonCordoned, metav1.ConditionTrue, Well, false},
		"it is not found out yet": {metav1.ConditionUnknown, v1alpha1.ReasonNotProbed, metav1.ConditionTrue, Well, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := *builders.MakeNixBuilder("linux").Endpoint("a", "a.example").
				Condition(v1alpha1.ConditionReady, tc.status, tc.reason).Obj()
			object.Status.LastProbe = &v1alpha1.LastProbe{Endpoints: []v1alpha1.ProbedEndpoint{{Name: "a", Steps: step(tc.step, "x")}}}
			got := FromStatus(&object, nil, time.Now())
			if told := len(got.Steps) > 0 && got.Steps[0].Reason == tc.reason; got.Finding != tc.want || told != tc.told {
				t.Errorf("got %+v, want %s", got, tc.want)
			}
		})
	}
}

func TestPrint(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	object := linux("linux")
	object.Spec.Endpoints = append(object.Spec.Endpoints, v1alpha1.Endpoint{
		Name: "b", Host: "b.example", Port: 22, Cordon: builders.MakeCordon("new disk", time.Time{}),
	})
	object.Status.LastProbe = &v1alpha1.LastProbe{
		Steps: []v1alpha1.ProbedStep{{Type: "Accepted", Status: "True", Reason: "Accepted", Message: "fine"}},
		Endpoints: []v1alpha1.ProbedEndpoint{
			{Name: "a", Steps: []v1alpha1.ProbedStep{
				{Type: "Reachable", Status: "True", Reason: "Connected", Message: "a: an SSH server answers", DurationMilliseconds: 12},
				{Type: "SystemsVerified", Status: "Unknown", Reason: "DiscoveryUnavailable", Message: "a: only nix-daemon may be run"},
			}},
			{Name: "b", Steps: []v1alpha1.ProbedStep{
				{Type: "Reachable", Status: "False", Reason: "ConnectionRefused", Message: "b: start sshd", DurationMilliseconds: 1},
				{Type: "SystemsVerified", Status: "Unknown", Reason: "NotReached", Message: "b: not checked"},
			}},
		},
	}
	tests := map[string]struct {
		verbose bool
		want    string
	}{
		"in short": {false, `ci/linux  SOMETHING IS WRONG
  Accepted          ok
  a (linux.example:22)  all well
    Reachable         ok           12 ms
    SystemsVerified   unknown             DiscoveryUnavailable
      a: only nix-daemon may be run
  b (b.example:22)  SOMETHING IS WRONG
    Reachable         WRONG         1 ms  ConnectionRefused
      b: start sshd
    SystemsVerified   -                   not reached
    cordoned: new disk

2 machines: 1 well, 1 with something wrong
`},
		"at length": {true, `ci/linux  SOMETHING IS WRONG
  Accepted          ok                  Accepted
    fine
  a (linux.example:22)  all well
    Reachable         ok           12 ms  Connected
      a: an SSH server answers
    SystemsVerified   unknown             DiscoveryUnavailable
      a: only nix-daemon may be run
  b (b.example:22)  SOMETHING IS WRONG
    Reachable         WRONG         1 ms  ConnectionRefused
      b: start sshd
    SystemsVerified   -                   not reached
      b: not checked
    cordoned: new disk

2 machines: 1 well, 1 with something wrong
`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			report := Report{Builders: []Builder{FromStatus(&object, nil, now)}}
			report.Print(show.New(&out, os.Getenv), tc.verbose)
			if diff := cmp.Diff(tc.want, out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
