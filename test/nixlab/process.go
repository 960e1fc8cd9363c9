// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Build users have the numbers from firstBuildUser on; see scripts/rootfs.sh.
const (
	firstBuildUser = 3001
	buildUsers     = 32
)

// process is one process of a host, numbered as on this machine.
type process struct {
	pid, parent int
	inner       int // its number on the host
	user        int
	zombie      bool
}

// processes lists the running processes of the host.
func (h *Host) processes() ([]process, error) {
	pid, err := h.pid()
	if err != nil {
		return nil, err
	}
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", h.name, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", h.name, err)
	}
	var found []process
	for _, entry := range entries {
		number, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		// A process that ends while it is looked at is not running.
		if link, err := os.Readlink(filepath.Join("/proc", entry.Name(), "ns/pid")); err != nil || link != namespace {
			continue
		}
		status, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "status"))
		if err != nil {
			continue
		}
		if p := parseStatus(number, string(status)); !p.zombie {
			found = append(found, p)
		}
	}
	return found, nil
}

// parseStatus reads the fields of /proc/PID/status that matter here.
func parseStatus(pid int, status string) process {
	p := process{pid: pid}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch name {
		case "State":
			p.zombie = fields[0] == "Z" || fields[0] == "X"
		case "PPid":
			p.parent, _ = strconv.Atoi(fields[0])
		case "Uid":
			p.user, _ = strconv.Atoi(fields[0])
		case "NSpid":
			p.inner, _ = strconv.Atoi(fields[len(fields)-1])
		}
	}
	return p
}

// BuildsRunning counts the builds that run on the host right now: the build
// users that have a process.
func (h *Host) BuildsRunning() (int, error) {
	processes, err := h.processes()
	if err != nil {
		return 0, err
	}
	users := map[int]bool{}
	for _, p := range processes {
		if p.user >= firstBuildUser && p.user < firstBuildUser+buildUsers {
			users[p.user] = true
		}
	}
	return len(users), nil
}

// StopProcesses suspends every process of the host: its kernel still accepts
// connections, and nothing ever answers.
func (h *Host) StopProcesses() error { return h.signalAll(syscall.SIGSTOP) }

// ContinueProcesses undoes [Host.StopProcesses].
func (h *Host) ContinueProcesses() error { return h.signalAll(syscall.SIGCONT) }

// StopDaemon suspends nix-daemon with its workers; sshd goes on.
func (h *Host) StopDaemon() error { return h.signalDaemon(syscall.SIGSTOP) }

// ContinueDaemon undoes [Host.StopDaemon].
func (h *Host) ContinueDaemon() error { return h.signalDaemon(syscall.SIGCONT) }

// KillDaemon ends nix-daemon with its workers for good; sshd goes on.
func (h *Host) KillDaemon() error { return h.signalDaemon(syscall.SIGKILL) }

func (h *Host) signalAll(signal syscall.Signal) error {
	return h.signalEach(signal, h.processes)
}

func (h *Host) signalDaemon(signal syscall.Signal) error {
	pid, err := h.pid()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/run/nix-daemon.pid", pid))
	if err != nil {
		return fmt.Errorf("nix-daemon of %s: %w", h.name, err)
	}
	daemon, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("nix-daemon of %s: %w", h.name, err)
	}
	return h.signalEach(signal, func() ([]process, error) {
		all, err := h.processes()
		return descendants(all, daemon), err
	})
}

// descendants picks the process that the host numbers inner, and all below it.
func descendants(all []process, inner int) []process {
	var picked []process
	for _, p := range all {
		if p.inner == inner {
			picked = append(picked, p)
		}
	}
	for i := 0; i < len(picked); i++ {
		for _, p := range all {
			if p.parent == picked[i].pid {
				picked = append(picked, p)
			}
		}
	}
	return picked
}

// signalEach signals the listed processes, again and again until no new one
// has appeared since.
func (h *Host) signalEach(signal syscall.Signal, list func() ([]process, error)) error {
	signalled := map[int]bool{}
	for {
		processes, err := list()
		if err != nil {
			return err
		}
		processes = slices.DeleteFunc(processes, func(p process) bool { return signalled[p.pid] })
		if len(processes) == 0 {
			return nil
		}
		for _, p := range processes {
			signalled[p.pid] = true
			if err := syscall.Kill(p.pid, signal); err != nil && err != syscall.ESRCH {
				return fmt.Errorf("signal %v to process %d of %s: %w", signal, p.inner, h.name, err)
			}
		}
		time.Sleep(time.Millisecond) // lets a fork that was under way show up
	}
}
