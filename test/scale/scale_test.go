// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scale

import (
	"flag"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// The defaults are for a run among many other tests.
var (
	endpointsFlag = flag.Int("endpoints", 20, "how many endpoints there are; every tenth becomes a black hole in the end")
	durationFlag  = flag.Duration("duration", 10*time.Second, "how long to watch the operator at rest, with kept connections and without")
	intervalFlag  = flag.Duration("interval", 5*time.Second, "time between two probes of an endpoint, whole seconds")
)

const (
	// patience bounds how long the operator takes to start, to end and to find
	// out about all endpoints.
	patience = 3 * time.Minute
	// jitter is by how much of it the prober varies an interval, as it documents.
	jitter = 0.1
	// leastAllowance is what other programs on the machine may delay a probe by,
	// however short the interval is.
	leastAllowance = 3 * time.Second
	// holesShare is the part of the endpoints that become black holes: one in
	// that many.
	holesShare = 10
	// mostCores and mostMemory are what the operator may use, however many endpoints
	// there are up to a thousand.
	mostCores  = 0.5
	mostMemory = 300 << 20
	// mostDelay is what black holes may delay a probe by, on a quiet machine.
	mostDelay = 100 * time.Millisecond
)

// run is the operator with its builders, and what was measured so far.
type run struct {
	*site
	*fleet
	operator *operator
	interval time.Duration
	phases   []phase
}

func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("takes about a minute")
	}
	r := &run{site: newSite(t), interval: *intervalFlag}
	r.fleet = newFleet(t, *endpointsFlag)
	t.Cleanup(func() { printTable(t.Output(), len(r.machines), r.interval, r.phases) })

	t.Cleanup(func() {
		if r.operator != nil {
			r.operator.stop(t)
		}
	})

	start := r.begin(t, "start")
	r.create(t, r.admin, r.interval)
	// Each passes on what the next begins with.
	for _, check := range []struct {
		name string
		test func(*testing.T)
	}{
		{"all become ready", func(t *testing.T) { r.becomeReady(t, start) }},
		{"nothing is written at rest", r.rest},
		{"nothing is written without kept connections", r.plain},
		{"a restart is not noticed", r.restart},
		{"black holes delay nobody", r.blackHoles},
	} {
		if !t.Run(check.name, check.test) {
			t.Fatal("the other checks need what this one did not reach")
		}
	}
}

// begin starts a phase, and the operator where it does not run.
func (r *run) begin(t *testing.T, name string, args ...string) phase {
	t.Helper()
	say(t, "phase: %s", name)
	p := phase{name: name, from: time.Now()}
	if r.operator != nil {
		p.before = r.operator.usage(t)
	} else {
		r.operator = r.startOperator(t, args...)
	}
	return p
}

// end completes a phase and returns what the operator wrote in it.
func (r *run) end(t *testing.T, p phase) tally {
	t.Helper()
	p.to = time.Now()
	p.after = r.operator.usage(t)
	written := r.written(t, p.from, p.to)
	p.writes, p.leases, p.election = len(written.others), written.leases, written.election
	p.probes = r.loginsIn(p.from, p.to)
	p.gaps = r.gapsIn(p.from, p.to)
	p.moments = r.moments(t, p.from, p.to)
	p.kept = r.kept()
	r.phases = append(r.phases, p)
	if p.after.peak > mostMemory {
		t.Errorf("the operator has used %d MiB", p.after.peak>>20)
	}
	return written
}

func (r *run) becomeReady(t *testing.T, p phase) {
	r.waitFor(t, "every endpoint to be healthy", func() (bool, string) {
		states := r.states(t)
		healthy := states[string(probe.ReasonAllPassed)]
		return healthy == len(r.machines), fmt.Sprintf("%d of %d are: %v", healthy, len(r.machines), states)
	})
	took := time.Since(p.from)
	r.settle(t)
	written := r.end(t, p)
	say(t, "all healthy after %.1fs, last write after %.1fs: %s", took.Seconds(), r.lastWrite(t).Sub(p.from).Seconds(), written)
}

// settle waits until nothing was written for an interval: events, whose sending
// is bounded, follow some time after the status.
func (r *run) settle(t *testing.T) {
	t.Helper()
	since := time.Now()
	r.waitFor(t, "writes to end", func() (bool, string) {
		last := r.lastWrite(t)
		if last.Before(since) {
			last = since
		}
		return time.Since(last) > r.interval, "the last one is of " + last.Format(time.TimeOnly)
	})
}

// rest: by the API server's audit log, the operator writes nothing but its Lease.
func (r *run) rest(t *testing.T) {
	before := r.versions(t)
	p := r.begin(t, "at rest")
	say(t, "watching for %s", *durationFlag)
	r.wait(t, *durationFlag)
	r.end(t, p).expectNone(t)
	if diff := cmp.Diff(before, r.versions(t)); diff != "" {
		t.Errorf("resource versions (-before +after):\n%s", diff)
	}
	r.expectPunctual(t, len(r.machines))
	r.expectModest(t)
	if kept := r.phases[len(r.phases)-1].kept; kept < len(r.machines) {
		t.Errorf("%d connections are kept, want one to each of %d machines", kept, len(r.machines))
	}
}

// plain is rest without kept connections, to see what they cost. The operator is
// another one afterwards.
func (r *run) plain(t *testing.T) {
	before := r.versions(t)
	r.operator.stop(t)
	r.operator = nil
	p := r.begin(t, "plain start", "--kept-connections=false")
	r.wait(t, r.interval+r.allowance())
	r.end(t, p)
	p = r.begin(t, "plain")
	r.wait(t, *durationFlag)
	r.end(t, p).expectNone(t)
	if diff := cmp.Diff(before, r.versions(t)); diff != "" {
		t.Errorf("resource versions (-before +after):\n%s", diff)
	}
	r.expectPunctual(t, len(r.machines))
	r.expectModest(t)
	if kept := r.phases[len(r.phases)-1].kept; kept > len(r.machines)/4 {
		t.Errorf("%d connections are open", kept)
	}
}

// restart: a new process starts from the status it finds, changes nothing of it,
// and spreads its first probes over an interval.
func (r *run) restart(t *testing.T) {
	before := r.versions(t)
	r.operator.stop(t)
	r.operator = nil
	p := r.begin(t, "restart")
	r.waitFor(t, "the first probes", func() (bool, string) {
		n := len(r.firstLogins(p.from))
		return n == len(r.machines), fmt.Sprintf("%d of %d", n, len(r.machines))
	})
	first := r.firstLogins(p.from)
	r.wait(t, r.interval)
	r.end(t, p).expectNone(t)
	if diff := cmp.Diff(before, r.versions(t)); diff != "" {
		t.Errorf("resource versions (-before +after):\n%s", diff)
	}

	slices.SortFunc(first, time.Time.Compare)
	begin, took := first[0], first[len(first)-1].Sub(first[0])
	var tenths [10]int
	for _, at := range first {
		tenths[min(9, int(10*at.Sub(begin)/r.interval))]++
	}
	say(t, "first probes over %.1fs, by tenths of the interval: %v", took.Seconds(), tenths)
	// More than four standard deviations above the mean is no chance.
	mean := float64(len(first)) / float64(len(tenths))
	if most := slices.Max(tenths[:]); float64(most) > mean+4*math.Sqrt(mean)+1 {
		t.Errorf("%d first probes in a tenth of the interval, want about %.0f", most, mean)
	}
	if took > r.interval+r.allowance() {
		t.Errorf("the first probes took %v, want at most about %v", took, r.interval)
	}
}

// blackHoles: endpoints that swallow packets are found to do so, the others are
// probed as before, and once that is known nothing is written either.
func (r *run) blackHoles(t *testing.T) {
	p := r.begin(t, "black holes")
	holes := r.dig(t, holesShare)
	rest := r.phases[1].moments
	want := map[string]int{
		string(probe.ReasonAllPassed):      len(r.machines) - holes,
		string(probe.ReasonConnectTimeout): holes,
	}
	r.waitFor(t, "black holes to be unlisted", func() (bool, string) {
		unhealthy := r.count(t, func(e *v1alpha1.EndpointStatus) bool { return e.State == v1alpha1.EndpointUnhealthy })
		states := r.states(t)
		return unhealthy == holes && maps.Equal(states, want), fmt.Sprintf("%d unlisted, by reason: %v", unhealthy, states)
	})
	say(t, "all %d unlisted after %.1fs", holes, time.Since(p.from).Seconds())
	r.settle(t)
	quiet := time.Now()
	r.wait(t, 2*r.interval)
	say(t, "written: %s", r.end(t, p))
	r.written(t, quiet, time.Now()).expectNone(t)
	if diff := cmp.Diff(want, r.states(t)); diff != "" {
		t.Errorf("endpoints by reason (-want +got):\n%s", diff)
	}
	r.expectPunctual(t, len(r.machines)-holes)
	r.expectModest(t)
	r.expectUndelayed(t, rest)
}

// expectModest checks what the operator used in the last phase.
func (r *run) expectModest(t *testing.T) {
	t.Helper()
	p := &r.phases[len(r.phases)-1]
	if cores := (p.after.cpu - p.before.cpu).Seconds() / p.to.Sub(p.from).Seconds(); cores > mostCores {
		t.Errorf("%.2f cores", cores)
	}
}

// expectUndelayed compares how late probes of the last phase began and ended with those
// at rest.
func (r *run) expectUndelayed(t *testing.T, rest []moment) {
	t.Helper()
	now := r.phases[len(r.phases)-1].moments
	allowance := r.allowance()
	if r.interval >= probe.DefaultInterval {
		allowance = mostDelay
	}
	for name, pick := range map[string]func(moment) time.Duration{"begins": begins, "ends": ends} {
		before, after := times(rest, pick), times(now, pick)
		if len(before) == 0 || len(after) == 0 {
			t.Errorf("%d probes at rest, %d now", len(before), len(after))
			continue
		}
		for _, q := range []float64{0.5, 0.99, 0.999} {
			if delay := quantile(after, q) - quantile(before, q); delay > allowance {
				t.Errorf("%g %% of the probes: the last one %s %v later than at rest", 100*q, name, delay)
			}
		}
	}
}

// allowance is how late a probe may be.
func (r *run) allowance() time.Duration { return max(r.interval/5, leastAllowance) }

// expectPunctual checks that in the last phase 99 in 100 probes came within an
// interval, jitter and allowance of the one before, and that there were as many as
// that makes for the endpoints that are well.
func (r *run) expectPunctual(t *testing.T, healthy int) {
	t.Helper()
	p := &r.phases[len(r.phases)-1]
	limit := time.Duration(float64(r.interval)*(1+jitter)) + r.allowance()
	if least := healthy * int(p.to.Sub(p.from)/limit); p.probes < least {
		t.Errorf("%d probes of %d endpoints in %s, want at least %d", p.probes, healthy, p.to.Sub(p.from), least)
	}
	if len(p.gaps) == 0 {
		return // the phase is too short
	}
	if late := quantile(p.gaps, 0.99); late > limit {
		t.Errorf("1 in 100 probes is %v or more after the one before, want at most %v", late, limit)
	}
}

// say reports progress.
func say(t *testing.T, format string, args ...any) {
	_, _ = fmt.Fprintf(t.Output(), "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
