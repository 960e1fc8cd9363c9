// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

var probesFlag = flag.Int("probes", 60, "how many probes TestProbesLeaveNothing makes of a builder")

const (
	// requestEvery is after how many probes one is requested, which asks the builder
	// everything anew.
	requestEvery = 25
	// mostLogLines is how many lines sshd may log for a probe at level VERBOSE, where it
	// tells of each connection, key, session and command; nix-daemon's are besides.
	mostLogLines = 40
)

// traces is what probes could leave on a builder.
type traces struct {
	Processes map[string]int // by name and user
	Files     []string       // names of those that come and go
	Paths     []string       // in the store
	Records   string         // of logins: sizes
}

// traceScript lists them. The shell that runs it, and what it starts, are left out.
const traceScript = `
for p in /proc/[0-9]*; do
	[ "${p#/proc/}" = $$ ] && continue
	{ read -r name <$p/comm && uid=$(grep ^Uid: $p/status | cut -f2); } 2>/dev/null && [ -d $p ] && echo "process $name $uid"
done
find /nix/var /tmp /var/tmp /run /var/run/ /var/lock/ /var/spool /home /root /dev/shm -xdev 2>/dev/null | sed 's/^/file /'
for f in /run/utmp /var/run/utmp /var/log/wtmp /var/log/btmp /var/log/lastlog; do [ -e $f ] && echo "record $f $(wc -c <$f)"; done
exit 0`

// look finds out what is on a builder.
func look(t *testing.T, b *nixlab.Builder) traces {
	t.Helper()
	text, err := b.Exec(t.Context(), "/bin/sh", "-c", traceScript)
	if err != nil {
		t.Fatal(err)
	}
	found := traces{Processes: map[string]int{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		kind, what, _ := strings.Cut(line, " ")
		switch kind {
		case "process":
			found.Processes[what]++
		case "file":
			found.Files = append(found.Files, what)
		case "record":
			found.Records += what + "; "
		}
	}
	slices.Sort(found.Files)
	if found.Paths, err = b.StorePaths(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(found.Paths)
	return found
}

// TestProbesLeaveNothing: after many probes there is nothing on a builder that was not
// there before, while one connection is kept and after it was closed.
func TestProbesLeaveNothing(t *testing.T) {
	if err := nixlab.Prerequisites(); err != nil {
		t.Skip(err)
	}
	lab, err := nixlab.New(nixlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	builder, err := lab.StartBuilder(t.Context(), nixlab.BuilderOptions{Name: "traces"})
	if err != nil {
		t.Fatal(err)
	}
	idle := look(t, builder).Processes
	probeTimes(t, lab, builder, 2) // what the first ones make is there for good
	before := lookUntil(t, builder, func(now traces) string { return cmp.Diff(idle, now.Processes) })
	lines := strings.Count(builder.Logs(), "\n")

	took := probeTimes(t, lab, builder, *probesFlag)

	lines = strings.Count(builder.Logs(), "\n") - lines
	each := float64(lines) / float64(*probesFlag)
	t.Logf("%d probes in %.1fs, %.0f ms each; %.1f lines of log each", *probesFlag, took.Seconds(), 1000*took.Seconds()/float64(*probesFlag), each)
	if each > mostLogLines {
		t.Errorf("%.1f lines of log for each probe", each)
	}
	lookUntil(t, builder, func(now traces) string { return cmp.Diff(before, now) })
}

// lookUntil looks until there is no difference: processes may take a moment to end.
func lookUntil(t *testing.T, b *nixlab.Builder, differs func(traces) string) traces {
	t.Helper()
	deadline := time.Now().Add(soon)
	for {
		now := look(t, b)
		diff := differs(now)
		if diff == "" {
			return now
		}
		if time.Now().After(deadline) {
			t.Fatalf("on the builder (-before +after):\n%s", diff)
		}
		time.Sleep(polling)
	}
}

// probeTimes probes a builder n times as the operator does, one probe after the other
// and with a connection kept between them, and returns how long that took. Nothing is
// open afterwards.
func probeTimes(t *testing.T, lab *nixlab.Lab, b *nixlab.Builder, n int) time.Duration {
	t.Helper()
	key, err := os.ReadFile(lab.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var (
		mu      sync.Mutex
		done    int
		reasons = map[probe.Reason]int{}
		prober  *probe.Prober
		name    = probe.Key{Namespace: "ci", Name: "traces"}
	)
	prober = probe.New(probe.Options{
		Dial: sshconn.NewDialer(nil), KeepConnections: true,
		OnResult: func(_ probe.Key, result probe.Result) {
			mu.Lock()
			defer mu.Unlock()
			if failure, failed := result.Failure(); failed {
				reasons[failure.Reason]++
			}
			if done++; done == n {
				cancel()
			} else if done%requestEvery == 0 {
				prober.Request(name, fmt.Sprint(done))
			}
		},
	})
	began := time.Now()
	prober.Set(name, []probe.Target{{
		Endpoint: "b", Host: b.IP(), Port: b.Port(), User: nixlab.TrustedUser, HostKeys: []string{b.HostKey()},
		Credentials: []probe.Credential{{Name: "k", PrivateKey: key}}, Systems: []string{nixlab.System()},
		Discovery: true, KeepConnection: true, Interval: time.Millisecond,
		Thresholds: probe.Thresholds{MinFreeBytes: 1, MaxClockSkew: time.Minute},
	}})
	if err := prober.Start(ctx); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if done < n || len(reasons) > 0 {
		t.Fatalf("%d probes; failed: %v", done, slices.Collect(maps.Keys(reasons)))
	}
	return time.Since(began)
}
