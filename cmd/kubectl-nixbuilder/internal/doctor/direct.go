// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package doctor

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// atOnce is how many machines are probed at the same time.
const atOnce = 8

// Probe probes machines from here, in the way the operator does, and reports what is
// found. The error is a [UsageError], or ctx has ended.
func Probe(ctx context.Context, l Lines, progress Progress) (*Report, error) {
	spots, err := l.spots()
	if err != nil {
		return nil, err
	}
	b := Builder{Machines: make([]Machine, len(spots))}
	// Unlike the operator, which goes where others tell it to, this goes where its own
	// user does.
	opts := probe.Options{Dial: sshconn.NewDialer(nil)}
	count := &counter{progress: progress, all: len(spots), started: time.Now()}
	stop := count.start()
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range spots {
		group.Go(func() error {
			var err error
			b.Machines[i], err = spots[i].probe(ctx, opts)
			count.add()
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	b.settle()
	return &Report{Builders: []Builder{b}}, nil
}

// counter shows how many machines have been probed.
type counter struct {
	progress Progress
	all      int
	started  time.Time

	mu   sync.Mutex
	done int
}

// start shows the number every second, until what it returns is called.
func (c *counter) start() (stop func()) {
	ended := make(chan struct{})
	var showing sync.WaitGroup
	showing.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			c.show()
			select {
			case <-ended:
				return
			case <-ticker.C:
			}
		}
	})
	return func() {
		close(ended)
		showing.Wait()
		c.progress.Clear()
	}
}

func (c *counter) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done++
}

func (c *counter) show() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.progress.Show(fmt.Sprintf("probed %d of %d machines (%s)", c.done, c.all, time.Since(c.started).Round(time.Second)))
}

func (s *spot) probe(ctx context.Context, opts probe.Options) (Machine, error) {
	m := Machine{Name: s.name, Problem: s.problem}
	if s.problem != "" {
		return m, nil
	}
	m.Address = s.target.Address()
	result, err := probe.Once(ctx, opts, s.target)
	if err != nil {
		return m, err
	}
	for i, outcome := range result.Outcomes {
		step := Step{
			Type: string(outcome.Step), Status: string(outcome.Status), Reason: string(outcome.Reason), Message: s.local(&outcome),
		}
		if i < len(result.Took) {
			step.Milliseconds = result.Took[i].Milliseconds()
		}
		m.Steps = append(m.Steps, step)
	}
	return m, nil
}
