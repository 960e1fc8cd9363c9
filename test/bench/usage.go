// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
)

// clockTicks is the unit of processor times in /proc, per second, on every Linux
// that Go runs on.
const clockTicks = 100

// usage is processor time used so far, in seconds.
type usage struct {
	// machine is of all processors, dispatcher of that process.
	machine, dispatcher float64
}

// usage reads what the machine and the dispatcher have used since their start.
func (d *dispatcher) usage() (u usage, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, err
	}
	if u.machine, err = parseMachineUsage(stat); err != nil {
		return u, err
	}
	stat, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.command.Process.Pid))
	if err != nil {
		return u, fmt.Errorf("the dispatcher has ended (%w):\n%s", err, d.tail())
	}
	u.dispatcher, err = parseProcessUsage(stat)
	return u, err
}

// parseMachineUsage sums up the first line of proc_stat(5) but for idling and
// waiting for disks.
func parseMachineUsage(stat []byte) (float64, error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, errors.New("/proc/stat has no line about all processors")
	}
	// user nice system idle iowait irq softirq; what follows is in them or not ours.
	return sumTicks(fields[1], fields[2], fields[3], fields[6], fields[7])
}

// parseProcessUsage reads the user and system time of proc_pid_stat(5).
func parseProcessUsage(stat []byte) (float64, error) {
	// The fields behind the program's name in parentheses start with the third.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 15-2 {
		return 0, errors.New("the status of a process is incomplete")
	}
	return sumTicks(fields[14-3], fields[15-3])
}

func sumTicks(fields ...string) (float64, error) {
	sum := 0.0
	for _, field := range fields {
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0, fmt.Errorf("processor times in /proc: %w", err)
		}
		sum += ticks
	}
	return sum / clockTicks, nil
}

// time takes one sample of a scenario: the time that take returns, and the
// processor time that went by meanwhile.
func (r *run) time(s *site, d *dispatcher, scenario, way string, take func() (time.Duration, error)) error {
	before, err := d.usage()
	if err != nil {
		return err
	}
	took, err := take()
	if err != nil {
		return err
	}
	after, err := d.usage()
	if err != nil {
		return err
	}
	r.add(scenario, s, way, took.Seconds())
	r.document.Series.Add(figures.CPU+scenario, s.client.Nix(), way, after.machine-before.machine)
	if way == figures.Dispatcher {
		r.document.Series.Add(figures.CPU+scenario, s.client.Nix(), figures.Process, after.dispatcher-before.dispatcher)
	}
	return nil
}
