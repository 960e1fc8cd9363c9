// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cordon

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/cluster"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

// fake has one NixBuilder, and refuses as many patches as it is told to.
type fake struct {
	builder *v1alpha1.NixBuilder
	refuse  int
	err     error
	patches []string
}

func (f *fake) Get(context.Context, types.NamespacedName) (*v1alpha1.NixBuilder, error) {
	return f.builder, f.err
}

func (f *fake) Patch(_ context.Context, key types.NamespacedName, kind types.PatchType, patch []byte) error {
	f.patches = append(f.patches, key.String()+" "+string(kind)+" "+string(patch))
	if f.refuse > 0 {
		f.refuse--
		return &cluster.ConflictError{Err: errors.New("changed")}
	}
	return nil
}

var until = time.Date(2030, 1, 4, 18, 0, 0, 0, time.UTC)

func TestSet(t *testing.T) {
	t.Parallel()
	const (
		json  = "ci/linux application/json-patch+json "
		merge = "ci/linux application/merge-patch+json "
		test  = `[{"op":"test","path":"/spec/endpoints/1/name","value":"b"},`
	)
	disk := &v1alpha1.Cordon{Reason: "disk"}
	timed := &v1alpha1.Cordon{Reason: "disk", Until: &metav1.Time{Time: until}}
	tests := map[string]struct {
		subject     string
		now         *v1alpha1.Cordon // on what is meant
		cordon      *v1alpha1.Cordon
		want        string
		wantNothing bool
	}{
		"a builder":                            {subject: "linux", cordon: disk, want: merge + `{"spec":{"cordon":{"reason":"disk","until":null}}}`},
		"a builder until":                      {subject: "linux", cordon: timed, want: merge + `{"spec":{"cordon":{"reason":"disk","until":"2030-01-04T18:00:00Z"}}}`},
		"a builder, no more":                   {subject: "linux", now: disk, want: merge + `{"spec":{"cordon":null}}`},
		"a builder that is not":                {subject: "linux", wantNothing: true},
		"a builder that is":                    {subject: "linux", now: disk, cordon: disk, wantNothing: true},
		"an endpoint":                          {subject: "linux/b", cordon: timed, want: json + test + `{"op":"add","path":"/spec/endpoints/1/cordon","value":{"reason":"disk","until":"2030-01-04T18:00:00Z"}}]`},
		"an endpoint, for longer":              {subject: "linux/b", now: timed, cordon: disk, want: json + test + `{"op":"add","path":"/spec/endpoints/1/cordon","value":{"reason":"disk"}}]`},
		"an endpoint, no more":                 {subject: "linux/b", now: timed, want: json + test + `{"op":"remove","path":"/spec/endpoints/1/cordon"}]`},
		"an endpoint that is not":              {subject: "linux/b", wantNothing: true},
		"an endpoint that is, until then, too": {subject: "linux/b", now: timed, cordon: timed, wantNothing: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fake{builder: builders.MakeNixBuilder("linux").Namespace("ci").Endpoint("a", "a.example").Endpoint("b", "b.example").Obj(), refuse: 2}
			subject, err := ParseSubject("ci", tc.subject)
			if err != nil {
				t.Fatal(err)
			}
			if subject.Endpoint == "" {
				f.builder.Spec.Cordon = tc.now
			} else {
				f.builder.Spec.Endpoints[1].Cordon = tc.now
			}
			_, changed, err := Set(t.Context(), f, subject, tc.cordon)
			if err != nil || changed == tc.wantNothing {
				t.Errorf("changed: %t, %v", changed, err)
			}
			want := []string{tc.want, tc.want, tc.want} // two are refused
			if tc.wantNothing {
				want = nil
			}
			if diff := cmp.Diff(want, f.patches); diff != "" {
				t.Errorf("patches (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSetGivesUp(t *testing.T) {
	t.Parallel()
	builder := builders.MakeNixBuilder("linux").Endpoint("a", "a.example").Obj()
	broken := errors.New("broken")
	tests := map[string]struct {
		fake    fake
		subject string
		want    string
	}{
		"others are faster":      {fake{builder: builder, refuse: 100}, "linux/a", "changed"},
		"there is none":          {fake{err: broken}, "linux", "broken"},
		"there is no such place": {fake{builder: builder}, "linux/b", "NixBuilder linux has no endpoint b, only a"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			subject, err := ParseSubject("ci", tc.subject)
			if err != nil {
				t.Fatal(err)
			}
			_, changed, err := Set(t.Context(), &tc.fake, subject, &v1alpha1.Cordon{Reason: "r"})
			if err == nil || changed || err.Error() != tc.want {
				t.Errorf("changed: %t, error %v, want %s", changed, err, tc.want)
			}
			if len(tc.fake.patches) > attempts {
				t.Errorf("%d attempts", len(tc.fake.patches))
			}
		})
	}
}

func TestParseSubject(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"linux": "linux", "linux/a": "linux/a", "": "", "/a": "", "linux/": "", "a/b/c": "",
	} {
		got, err := ParseSubject("ci", text)
		if want == "" {
			if err == nil {
				t.Errorf("%q is %s", text, got)
			}
			continue
		}
		if err != nil || got.String() != want || got.Builder.Namespace != "ci" {
			t.Errorf("%q is %s, %v", text, got, err)
		}
	}
}

func TestParseUntil(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("here", 2*60*60)
	now := time.Date(2029, 12, 30, 15, 30, 0, 500, zone)
	tests := map[string]struct {
		text    string
		want    string // RFC 3339
		wantErr string
	}{
		"minutes":              {text: "90m", want: "2029-12-30T17:00:00+02:00"},
		"days":                 {text: "7d", want: "2030-01-06T15:30:00+02:00"},
		"later today":          {text: "18:00", want: "2029-12-30T18:00:00+02:00"},
		"early tomorrow":       {text: "08:15", want: "2029-12-31T08:15:00+02:00"},
		"RFC 3339":             {text: "2030-01-04T18:00:00Z", want: "2030-01-04T18:00:00Z"},
		"a local time":         {text: "2030-01-04 18:00", want: "2030-01-04T18:00:00+02:00"},
		"a local time, joined": {text: "2030-01-04T18:00", want: "2030-01-04T18:00:00+02:00"},
		"a day":                {text: "2030-01-04", want: "2030-01-04T00:00:00+02:00"},
		"over":                 {text: "2029-01-04", wantErr: "is over already"},
		"backwards":            {text: "-1h", wantErr: "is over already"},
		"words":                {text: "tomorrow", wantErr: "is not a time: write 90m"},
		"days and more":        {text: "7d2h", wantErr: "is not a time"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseUntil(tc.text, now)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("ParseUntil = %v, %v; want %s", got, err, tc.wantErr)
				}
				return
			}
			if err != nil || got.Format(time.RFC3339) != tc.want {
				t.Errorf("ParseUntil = %v, %v; want %s", got, err, tc.want)
			}
		})
	}
}
