// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scheduler

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// BenchmarkPlacement keeps 10 000 requests of 100 clients with mixed needs
// waiting for 1 000 builders, all of whose slots are taken, and gives slots
// back one after the other: each is a placement, from the release to the return
// of somebody's Acquire, who was told of the wait and asks again afterwards.
func BenchmarkPlacement(b *testing.B) {
	const waiting, builders, slotsEach, clients = 10_000, 1_000, 4, 100
	fleet, needs := mixedFleet(builders, slotsEach)
	l := NewLocal(LocalOptions{Interval: time.Hour})
	l.Update(fleet)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	leases := make(chan *Lease, builders*slotsEach)
	for i := range waiting + builders*slotsEach {
		r := Request{
			Class: needs[i%len(needs)], Key: fmt.Sprint("/nix/store/", i), Client: fmt.Sprint("client ", i%clients),
			Present: map[string]int{fleet[i%builders].ID: 3},
		}
		wg.Go(func() {
			for {
				lease, err := l.Acquire(ctx, r, func(Waiting) {})
				if err != nil {
					return
				}
				select {
				case leases <- lease:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	for len(leases) < cap(leases) || l.Waiting() < waiting {
		time.Sleep(time.Millisecond)
	}
	began := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		(<-leases).Release()
	}
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "placements/s")
	cancel()
	wg.Wait()
}

// mixedFleet returns builders for two systems, some with a feature, and the
// needs that they serve.
func mixedFleet(n, slots int) (builders []Builder, needs []Class) {
	for i := range n {
		b := Builder{ID: fmt.Sprintf("pool/builder-%d", i), Systems: []string{"x86_64-linux", "i686-linux"}, Slots: slots, Speed: 1 + i%3}
		if i%2 == 0 {
			b.Supported = []string{"kvm", "big-parallel"}
		}
		if i%4 == 3 {
			b.Systems = []string{"aarch64-darwin"}
		}
		builders = append(builders, b)
	}
	return builders, []Class{
		Need("x86_64-linux", nil), Need("x86_64-linux", []string{"kvm"}),
		Need("aarch64-darwin", nil), Need("i686-linux", []string{"big-parallel"}),
	}
}

func BenchmarkPlace(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var s Snapshot
			for i := range n {
				s.Builders = append(s.Builders, linux(fmt.Sprint("b", i), running(i%3)))
			}
			r := Request{Class: NewClass("x86_64-linux", nil, nil), Key: "key"}
			for b.Loop() {
				if _, ok := Place(s, r); !ok {
					b.Fatal("not placed")
				}
			}
		})
	}
}

// BenchmarkAcquireRelease places one request after the other on idle builders,
// the case in which every builder is a candidate.
func BenchmarkAcquireRelease(b *testing.B) {
	for _, waiting := range []int{0, 10_000} {
		b.Run(fmt.Sprint("waiting=", waiting), func(b *testing.B) {
			fleet, needs := mixedFleet(1000, 4)
			l := NewLocal(LocalOptions{Interval: time.Hour})
			l.Update(fleet)
			for i := range waiting {
				l.ask(Request{Class: Need("riscv64-linux", nil), Client: fmt.Sprint(i % 100)})
			}
			for b.Loop() {
				lease, err := l.Acquire(b.Context(), Request{Class: needs[0], Key: "key"}, nil)
				if err != nil {
					b.Fatal(err)
				}
				lease.Release()
			}
		})
	}
}

// BenchmarkStatus lists a thousand of 10 000 that wait.
func BenchmarkStatus(b *testing.B) {
	l := NewLocal(LocalOptions{})
	fleet, needs := mixedFleet(1000, 0)
	l.Update(fleet)
	for i := range 10_000 {
		l.ask(Request{Class: needs[i%len(needs)], Client: fmt.Sprint(i % 100)})
	}
	for b.Loop() {
		l.Status()
	}
}

func BenchmarkLines(b *testing.B) {
	var builders []Builder
	for i := range 1000 {
		builders = append(builders, Builder{
			ID: fmt.Sprint("b", i), Systems: []string{"x86_64-linux", "i686-linux"}, Slots: 8,
			Supported: []string{"kvm", "big-parallel", fmt.Sprint("f", i%10)},
		})
	}
	for b.Loop() {
		Lines(builders, 512)
	}
}
