// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// machineCommand prints what is measured of a machine. It is read by whatever shell the
// user logs in with: in single quotes, and without exclamation marks, backslashes and
// line breaks, it is the same to bash, dash, zsh, fish, tcsh and Busybox. Programs are
// looked for where non-interactive shells may not look. What a machine does not have
// makes an empty line: macOS has no /proc, Linux no vm.loadavg.
const machineCommand = `/bin/sh -c 'PATH="$PATH:/run/current-system/sw/bin:/usr/bin:/bin:/usr/sbin:/sbin"; LC_ALL=C; export PATH LC_ALL; set -f; exec 2>/dev/null; ` +
	`echo ` + machineBegin + `; ` +
	`echo clock $(date +%s); ` +
	`read l </proc/loadavg || l=$(sysctl -n vm.loadavg); echo load $l; ` +
	`echo processors $(getconf _NPROCESSORS_ONLN || nproc || sysctl -n hw.ncpu); ` +
	`for p in cpu memory io; do l=; read l </proc/pressure/$p; echo $p $l; done; ` +
	`echo store $(df -Pk /nix/store); ` +
	`echo ` + machineEnd + `'`

// Marks around the report. What a login shell prints besides is not looked at.
const (
	machineBegin = "nix-builder-machine-begin"
	machineEnd   = "nix-builder-machine-end"
)

const (
	// maxReport bounds what is read of a report, in bytes; some 600 are usual.
	maxReport = 8 << 10
	// maxStoreKiB bounds the size of a store that is believed: 1 EiB.
	maxStoreKiB = 1 << 50
	// maxProcessors and maxLoad bound what is believed of processors and load.
	maxProcessors = 1 << 16
	maxLoad       = 1 << 20
)

// measurement is what a machine said of itself. What it did not say is not known.
type measurement struct {
	storeKnown            bool
	freeBytes, storeBytes int64
	// load is the load average of the last minute; negative where not known.
	load       float64
	processors int
	// cpu, memory and io are parts of the last minute, in percent; negative where
	// not known.
	cpu, memory, io float64
	// skew is by how much the clock is ahead of ours; it may be off by slack.
	clockKnown  bool
	skew, slack time.Duration
}

// measure asks a machine. It reports false where there is no answer that makes sense,
// as with a forced command.
func measure(ctx context.Context, t *Target, conn *sshconn.Conn) (measurement, bool) {
	asked := time.Now()
	output := runUpTo(ctx, t, conn, machineCommand, maxReport)
	slack := time.Since(asked) / 2
	m, clock, ok := parseMachine(string(output.stdout))
	if ok && m.clockKnown {
		m.skew, m.slack = time.Unix(clock, 0).Sub(asked.Add(slack)), slack+time.Second
	}
	return m, ok
}

// parseMachine reads a report. clock is in seconds since 1970. Lines that are not as
// they should be count as absent, all of them where the report has no end.
func parseMachine(text string) (m measurement, clock int64, ok bool) {
	_, text, found := strings.Cut("\n"+text, "\n"+machineBegin+"\n")
	text, _, ended := strings.Cut("\n"+text, "\n"+machineEnd)
	m = measurement{load: -1, cpu: -1, memory: -1, io: -1}
	if !found || !ended {
		return m, 0, false
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch values := words[1:]; words[0] {
		case "clock":
			seconds, err := strconv.ParseInt(values[0], 10, 64)
			// Beyond the year 9999 there is no date to compare with.
			if err == nil && len(values) == 1 && seconds >= 0 && seconds < 253402300800 {
				clock, m.clockKnown = seconds, true
			}
		case "load":
			m.load = parseLoad(values)
		case "processors":
			if n, err := strconv.Atoi(values[0]); err == nil && len(values) == 1 && n > 0 && n <= maxProcessors {
				m.processors = n
			}
		case "cpu":
			m.cpu = parsePressure(values)
		case "memory":
			m.memory = parsePressure(values)
		case "io":
			m.io = parsePressure(values)
		case "store":
			m.freeBytes, m.storeBytes, m.storeKnown = parseRoom(values)
		}
	}
	return m, clock, true
}

// parseLoad reads "0.10 0.20 0.30 …" or "{ 0.10 0.20 0.30 }".
func parseLoad(words []string) float64 {
	if words[0] == "{" {
		words = words[1:]
	}
	if len(words) < 3 {
		return -1
	}
	return parseFigure(words[0], maxLoad)
}

// parsePressure reads "some avg10=0.00 avg60=0.00 …".
func parsePressure(words []string) float64 {
	if len(words) < 3 || words[0] != "some" {
		return -1
	}
	value, ok := strings.CutPrefix(words[2], "avg60=")
	if !ok {
		return -1
	}
	return parseFigure(value, 100)
}

func parseFigure(word string, limit float64) float64 {
	value, err := strconv.ParseFloat(word, 64)
	if err != nil || math.IsNaN(value) || value < 0 || value > limit {
		return -1
	}
	return value
}

// parseRoom reads what POSIX has df -P print, the line breaks lost: a heading, then the
// file system, its size, used and available in KiB, the part in use and where it is.
// Names may contain spaces, so it is the part in use that is looked for.
func parseRoom(words []string) (free, size int64, ok bool) {
	for i := len(words) - 1; i >= 3; i-- {
		if part, isPart := strings.CutSuffix(words[i], "%"); !isPart || part != "-" && !isNumber(part) {
			continue
		}
		total, err := strconv.ParseInt(words[i-3], 10, 64)
		available, err2 := strconv.ParseInt(words[i-1], 10, 64)
		if err != nil || err2 != nil || !isNumber(words[i-2]) || total <= 0 || total > maxStoreKiB || available > total {
			continue
		}
		// What is kept for root makes it negative.
		return max(available, 0) << 10, total << 10, true
	}
	return 0, 0, false
}

func isNumber(word string) bool {
	_, err := strconv.ParseUint(word, 10, 63)
	return err == nil
}
