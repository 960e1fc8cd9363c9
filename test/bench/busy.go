// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"slices"
	"sync"
	"time"
)

// samplePause is between two looks at the builders' processes.
const samplePause = 50 * time.Millisecond

// busyness is how many builds ran on each builder over time. They are counted by
// their processes, so builds that nobody waits for any more count too.
type busyness struct {
	// times are since the beginning; running has as many rows, with a column for
	// each builder.
	times   []time.Duration
	running [][]int
}

// most returns the most builds at once on each builder.
func (b *busyness) most() []int {
	var most []int
	for _, row := range b.running {
		for i, n := range row {
			if i == len(most) {
				most = append(most, 0)
			}
			most[i] = max(most[i], n)
		}
	}
	return most
}

// exceeded returns by how many builds the builder was over its slots that was so
// most; zero if none ever was.
func (b *busyness) exceeded(slots []int) int {
	over := []int{0}
	for i, most := range b.most() {
		over = append(over, most-slots[i])
	}
	return slices.Max(over)
}

// watcher samples builders until it is stopped.
type watcher struct {
	done  chan struct{}
	group sync.WaitGroup
	busy  busyness
}

// watch begins to look at the builders. One that is down runs nothing.
func watch(stations []*station) *watcher {
	w := &watcher{done: make(chan struct{})}
	began := time.Now()
	w.group.Go(func() {
		ticker := time.NewTicker(samplePause)
		defer ticker.Stop()
		for {
			row := make([]int, len(stations))
			for i, b := range stations {
				if n, err := b.BuildsRunning(); err == nil {
					row[i] = n
				}
			}
			w.busy.times = append(w.busy.times, time.Since(began))
			w.busy.running = append(w.busy.running, row)
			select {
			case <-ticker.C:
			case <-w.done:
				return
			}
		}
	})
	return w
}

// stop ends the watch and returns what was seen.
func (w *watcher) stop() *busyness {
	close(w.done)
	w.group.Wait()
	return &w.busy
}
