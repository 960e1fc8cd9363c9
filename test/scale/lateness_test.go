// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package scale

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"
	"time"
)

// moment is a probe as the operator's debug log tells of it.
type moment struct {
	endpoint string
	ended    time.Time
	// late is how long after it was due it began to connect; duration is from there
	// to its end.
	late, duration time.Duration
}

// moments reads the probes of a period from the log of the operator that runs, those of
// black holes aside.
func (r *run) moments(t *testing.T, from, to time.Time) []moment {
	t.Helper()
	log, err := os.Open(r.operator.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	holes := map[string]bool{}
	for _, m := range r.machines {
		holes[m.name] = m.hole
	}
	var all []moment
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Time           time.Time
			Msg, Endpoint  string
			Late, Duration time.Duration
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil || line.Msg != "Probed builder" {
			continue
		}
		if holes[line.Endpoint] || line.Time.Before(from) || !line.Time.Before(to) {
			continue
		}
		all = append(all, moment{line.Endpoint, line.Time, line.Late, line.Duration})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// times picks a time of each moment.
func times(moments []moment, pick func(moment) time.Duration) []time.Duration {
	all := make([]time.Duration, len(moments))
	for i, m := range moments {
		all[i] = pick(m)
	}
	return all
}

// begins is how late a probe begins to connect: what the schedule and others behind
// the same name cost it.
func begins(m moment) time.Duration { return m.late }

// ends is how late it ends: that, the wait for its turn to compute, and its work.
func ends(m moment) time.Duration { return m.late + m.duration }
