// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/test/builders"
)

// cordons are the statuses of endpoints a, b, c, … under these cordons.
func cordons(each ...*v1alpha1.Cordon) []v1alpha1.EndpointStatus {
	var list []v1alpha1.EndpointStatus
	for i, cordon := range each {
		list = append(list, v1alpha1.EndpointStatus{Name: string(rune('a' + i)), Cordon: cordon})
	}
	return list
}

func TestCordoned(t *testing.T) {
	t.Parallel()
	disk, move := builders.MakeCordon("new disk", testTime.Add(time.Hour)), builders.MakeCordon("moving house", time.Time{})
	again := builders.MakeCordon("new disk", testTime.Add(2*time.Hour))
	tests := map[string]struct {
		endpoints []v1alpha1.EndpointStatus
		want, all string
	}{
		"none":                    {endpoints: cordons(nil, nil)},
		"one":                     {endpoints: cordons(nil, disk), want: "b: new disk (until 2026-01-02T04:04:05Z)"},
		"two for one reason":      {endpoints: cordons(move, nil, move), want: "a, c: moving house"},
		"two for different ones":  {endpoints: cordons(move, nil, disk), want: "a: moving house; c: new disk (until 2026-01-02T04:04:05Z)"},
		"one reason and two ends": {endpoints: cordons(disk, again), want: "a: new disk (until 2026-01-02T04:04:05Z); b: new disk (until 2026-01-02T05:04:05Z)", all: "every endpoint is cordoned"},
		"all":                     {endpoints: cordons(move, move), want: "every endpoint: moving house", all: "every endpoint is cordoned: moving house"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := cordoned(tc.endpoints)
			if ok != (tc.want != "") || got.message != tc.want {
				t.Errorf("cordoned() = %q, %v, want %q", got.message, ok, tc.want)
			}
			if tc.all == "" {
				return
			}
			if got := allCordoned(tc.endpoints); got != tc.all {
				t.Errorf("allCordoned() = %q, want %q", got, tc.all)
			}
		})
	}
}

func TestCordonTransitions(t *testing.T) {
	t.Parallel()
	disk, move := builders.MakeCordon("new disk", testTime.Add(time.Hour)), builders.MakeCordon("moving house", time.Time{})
	longer := builders.MakeCordon("new disk", testTime.Add(2*time.Hour))
	const finish, over = "; no new builds, running ones finish", ": takes builds again, since the cordon is over: "
	const until, untilLonger = " (until 2026-01-02T04:04:05Z)", " (until 2026-01-02T05:04:05Z)"
	tests := map[string]struct {
		before, after []v1alpha1.EndpointStatus
		want          []string
	}{
		"nothing":                    {before: cordons(nil, nil), after: cordons(nil, nil)},
		"goes on":                    {before: cordons(disk, move), after: cordons(disk.DeepCopy(), move.DeepCopy())},
		"one begins":                 {before: cordons(nil, nil), after: cordons(disk, nil), want: []string{"Cordoned a: new disk" + until + finish}},
		"all begin":                  {before: cordons(nil, nil), after: cordons(move, move), want: []string{"Cordoned every endpoint: moving house" + finish}},
		"of an endpoint that is new": {after: cordons(nil, move), want: []string{"Cordoned b: moving house" + finish}},
		"one more begins":            {before: cordons(disk, nil), after: cordons(disk, disk), want: []string{"Cordoned b: new disk" + until + finish}},
		"ends later now":             {before: cordons(disk), after: cordons(longer), want: []string{"Cordoned every endpoint: new disk" + untilLonger + finish}},
		"one of two ends":            {before: cordons(disk, move), after: cordons(disk, nil), want: []string{"Uncordoned b" + over + "moving house"}},
		"all end":                    {before: cordons(disk, disk), after: cordons(nil, nil), want: []string{"Uncordoned every endpoint" + over + "new disk" + until}},
		"one begins, another ends":   {before: cordons(disk, nil), after: cordons(nil, move), want: []string{"Cordoned b: moving house" + finish, "Uncordoned a" + over + "new disk" + until}},
		"its endpoint is gone":       {before: cordons(nil, move), after: cordons(nil)},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, told := range cordonTransitions(&v1alpha1.NixBuilderStatus{Endpoints: tc.before}, &v1alpha1.NixBuilderStatus{Endpoints: tc.after}) {
				if told.warning || told.recurs || told.action != actionCordon {
					t.Errorf("event %+v", told)
				}
				got = append(got, told.reason+" "+told.note)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExpiredCordons(t *testing.T) {
	t.Parallel()
	past, ahead := testTime.Add(-time.Hour), testTime.Add(time.Hour)
	tests := map[string]struct {
		builder  *builders.NixBuilderWrapper
		observed int64
		want     string
	}{
		"no cordon":          {builder: one()},
		"ends later":         {builder: one().Cordon("disk", ahead)},
		"never ends":         {builder: one().Cordon("disk", time.Time{})},
		"over":               {builder: one().Cordon("disk", past), want: "spec.cordon: over already (until 2026-01-02T02:04:05Z), so"},
		"over for a while":   {builder: one().Cordon("disk", past), observed: 7},
		"over for a machine": {builder: one().Change(func(b *v1alpha1.NixBuilder) { b.Spec.Endpoints[0].Cordon = builders.MakeCordon("disk", past) }), want: "cordon of endpoint a: over"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			builder := tc.builder.Obj()
			builder.Status.ObservedGeneration = tc.observed
			var got string
			for _, told := range (&scope{builder: builder, now: testTime}).expiredCordons() {
				got += told.note
				if told.reason != "CordonExpired" || !told.warning {
					t.Errorf("event %+v", told)
				}
			}
			if (got != "") != (tc.want != "") || !strings.HasPrefix(got, tc.want) {
				t.Errorf("note %q, want %q…", got, tc.want)
			}
		})
	}
}
