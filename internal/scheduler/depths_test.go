// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDepths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{})
		l.Update([]Builder{linux("a", slots(0)), linux("b", slots(0))})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		kvm := Need("x86_64-linux", []string{"kvm"})
		began := time.Now()
		ended := make([]<-chan acquired, 0, 4)
		for _, r := range []Request{
			{Class: anyLinux.Class, Client: "one"},
			{Class: kvm, Client: "one"},
			{Class: anyLinux.Class, Client: "two"},
			{Class: anyLinux.Class, Client: "two", Avoid: []string{"a"}},
		} {
			waiting, _ := acquire(ctx, l, r)
			waits(t, waiting)
			ended = append(ended, waiting)
			time.Sleep(time.Second)
		}
		want := []Depth{
			{Class: anyLinux.Class, Waiting: 3, Oldest: began},
			{Class: kvm, Waiting: 1, Oldest: began.Add(time.Second)},
		}
		if diff := cmp.Diff(want, l.Depths()); diff != "" {
			t.Errorf("depths (-want +got):\n%s", diff)
		}
		cancel()
		for _, e := range ended {
			<-e
		}
		if got := l.Depths(); len(got) != 0 {
			t.Errorf("depths once nobody waits: %+v", got)
		}
	})
}
