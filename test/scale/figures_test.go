// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scale

import (
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/envtest"
)

// clockTicks is the unit of CPU times in /proc, per second, on every Linux that
// Go runs on.
const clockTicks = 100

// usage is what the operator's process has used so far.
type usage struct {
	cpu time.Duration
	// resident and peak are bytes.
	resident, peak int64
}

// usage reads proc_pid_stat(5) and proc_pid_status(5).
func (o *operator) usage(t *testing.T) usage {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", o.command.Process.Pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		t.Fatalf("the operator has ended (%v); its log ends with:\n%s", err, o.tail())
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		t.Fatal(err)
	}
	// The fields behind the program's name in parentheses start with the third.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	ticks := number(t, fields[14-3]) + number(t, fields[15-3])
	u := usage{cpu: time.Duration(ticks) * time.Second / clockTicks}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSuffix(strings.TrimSpace(value), " kB")
		switch name {
		case "VmRSS":
			u.resident = number(t, value) << 10
		case "VmHWM":
			u.peak = number(t, value) << 10
		}
	}
	return u
}

func number(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// tally is what the operator asked the API server to write.
type tally struct {
	// leases and election are requests about the Lease and events about it.
	leases, election int
	// others are all the rest.
	others []envtest.Write
}

func (s *site) written(t *testing.T, from, to time.Time) tally {
	t.Helper()
	writes, err := s.environment.Writes()
	if err != nil {
		t.Fatal(err)
	}
	var all tally
	for _, write := range writes {
		switch {
		case write.User != operatorUser || write.Time.Before(from) || !write.Time.Before(to):
		case write.Namespace == operatorNamespace && write.Resource == "leases":
			all.leases++
		case write.Namespace == operatorNamespace && write.Resource == "events":
			all.election++
		default:
			all.others = append(all.others, write)
		}
	}
	return all
}

// lastWrite returns when the operator last wrote about builders.
func (s *site) lastWrite(t *testing.T) time.Time {
	t.Helper()
	if others := s.written(t, time.Time{}, time.Now()).others; len(others) > 0 {
		return others[len(others)-1].Time
	}
	return time.Time{}
}

// expectNone checks that nothing but the Lease was written.
func (a tally) expectNone(t *testing.T) {
	t.Helper()
	if len(a.others) == 0 {
		return
	}
	var lines strings.Builder
	for _, w := range a.others[:min(10, len(a.others))] {
		fmt.Fprintf(&lines, "  %s %s %s %s/%s (%d)\n", w.Time.Format("15:04:05.000"), w.Verb, w.Resource, w.Namespace, w.Name, w.Code)
	}
	t.Errorf("%s wrote while nothing changed: %s\n%s", operatorUser, a, lines.String())
}

// String counts the writes about builders by what was done to which resource.
func (a tally) String() string {
	counts := map[string]int{}
	for _, w := range a.others {
		counts[w.Verb+" "+w.Resource]++
	}
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s ×%d", what, counts[what]))
	}
	return strings.Join(parts, ", ")
}

// phase is a period and what was measured in it.
type phase struct {
	name          string
	from, to      time.Time
	before, after usage
	probes        int
	gaps          []time.Duration
	moments       []moment
	kept          int
	writes        int
	leases        int
	election      int
}

// printTable prints a column for each phase, as docs/scale.md has them.
func printTable(w io.Writer, endpoints int, interval time.Duration, phases []phase) {
	row := func(name string, cell func(*phase) string) {
		line := fmt.Sprintf("| %-25s |", name)
		for i := range phases {
			line += fmt.Sprintf(" %11s |", cell(&phases[i]))
		}
		_, _ = fmt.Fprintln(w, line)
	}
	late := func(pick func(moment) time.Duration, q float64) func(*phase) string {
		return func(p *phase) string {
			if len(p.moments) == 0 {
				return "-"
			}
			return fmt.Sprintf("%.1f", 1000*quantile(times(p.moments, pick), q).Seconds())
		}
	}
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }
	mebibytes := func(n int64) string { return fmt.Sprintf("%.0f", float64(n)/(1<<20)) }
	gap := func(value func([]time.Duration) time.Duration) func(*phase) string {
		return func(p *phase) string {
			if len(p.gaps) == 0 {
				return "-"
			}
			return seconds(value(p.gaps))
		}
	}
	at := func(q float64) func([]time.Duration) time.Duration {
		return func(gaps []time.Duration) time.Duration { return quantile(gaps, q) }
	}
	_, _ = fmt.Fprintf(w, "%d endpoints, interval %s\n", endpoints, interval)
	row("", func(p *phase) string { return p.name })
	row("---", func(*phase) string { return "--:" })
	row("duration, s", func(p *phase) string { return seconds(p.to.Sub(p.from)) })
	row("probes that logged in", func(p *phase) string { return strconv.Itoa(p.probes) })
	row("CPU, s", func(p *phase) string { return seconds(p.after.cpu - p.before.cpu) })
	row("CPU, cores", func(p *phase) string {
		return fmt.Sprintf("%.3f", (p.after.cpu-p.before.cpu).Seconds()/p.to.Sub(p.from).Seconds())
	})
	row("CPU by such a probe, ms", func(p *phase) string {
		return fmt.Sprintf("%.2f", 1000*(p.after.cpu-p.before.cpu).Seconds()/float64(max(1, p.probes)))
	})
	row("memory, MiB", func(p *phase) string { return mebibytes(p.after.resident) })
	row("peak memory, MiB", func(p *phase) string { return mebibytes(p.after.peak) })
	row("kept connections", func(p *phase) string { return strconv.Itoa(p.kept) })
	row("writes about builders", func(p *phase) string { return strconv.Itoa(p.writes) })
	row("… of the Lease", func(p *phase) string { return strconv.Itoa(p.leases) })
	row("… of events about it", func(p *phase) string { return strconv.Itoa(p.election) })
	row("probe to probe, s: least", gap(slices.Min))
	row("… mean", gap(mean))
	row("… 99 %", gap(at(0.99)))
	row("… most", gap(slices.Max))
	row("begins late, ms: median", late(begins, 0.5))
	row("… 99 %", late(begins, 0.99))
	row("… most", late(begins, 1))
	row("ends late, ms: median", late(ends, 0.5))
	row("… 99 %", late(ends, 0.99))
	row("… most", late(ends, 1))
}

// quantile returns the value that a part q of all does not exceed.
func quantile(values []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func mean(values []time.Duration) time.Duration {
	sum := time.Duration(0)
	for _, value := range values {
		sum += value
	}
	return sum / time.Duration(len(values))
}

// wait lets time pass, tells every minute how far things are, and fails as soon
// as the operator has ended.
func (r *run) wait(t *testing.T, d time.Duration) {
	t.Helper()
	begin := time.Now()
	for left := d; left > 0; left = d - time.Since(begin) {
		select {
		case <-time.After(min(left, time.Minute)):
			if left > time.Minute {
				say(t, "%s, %d probes", time.Since(begin).Round(time.Second), r.loginsIn(begin, time.Now()))
			}
		case <-r.operator.done:
			t.Fatalf("the operator has ended; its log ends with:\n%s", r.operator.tail())
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}
