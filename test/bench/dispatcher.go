// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"nixbuilder.io/nix-builder-operator/test/bench/figures"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// patience is for what another process does soon.
const patience = 30 * time.Second

// dispatcher is a running nix-dispatcher with its default flags.
type dispatcher struct {
	site    *site
	name    string
	command *exec.Cmd
	done    chan struct{}
	log     *os.File
}

// startDispatcher starts a dispatcher for the first builders of the site, by their
// lines of the kind, with as many slots each. It returns once clients can begin.
func (s *site) startDispatcher(ctx context.Context, kind lineKind, slots []int, flags ...string) (*dispatcher, error) {
	d := &dispatcher{site: s, name: s.name("d"), done: make(chan struct{})}
	own := filepath.Join(s.lab.Dir(), d.name)
	spool, volume := filepath.Join(own, "spool"), filepath.Join(s.shared, d.name)
	for _, dir := range []string{own, spool, volume} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	var lines strings.Builder
	for i, b := range s.stations[:len(slots)] {
		lines.WriteString(b.MachinesLineAt(b.ip(kind)+":22", slots[i]) + "\n")
	}
	machines := filepath.Join(own, "machines")
	if err := os.WriteFile(machines, []byte(lines.String()), 0o600); err != nil {
		return nil, err
	}
	var err error
	if d.log, err = os.Create(filepath.Join(own, "log")); err != nil {
		return nil, err
	}
	defer d.log.Close()
	args := []string{
		"--net=" + s.network.Path(), filepath.Join(s.programs, "nix-dispatcher"),
		"--builders=" + machines, "--volume=" + volume, "--client-path=" + filepath.Join(nixlab.VolumePath, d.name),
		"--spool-dir=" + spool, "--shutdown-timeout=2s",
	}
	d.command = exec.Command("nsenter", append(args, flags...)...)
	d.command.Stdout, d.command.Stderr = d.log, d.log
	if err := startBound(d.command); err != nil {
		return nil, fmt.Errorf("start the dispatcher: %w", err)
	}
	go func() {
		defer close(d.done)
		_ = d.command.Wait() // its log tells why
	}()
	s.closers = append(s.closers, d.stop)
	return d, d.waitReady(ctx, volume)
}

func (d *dispatcher) waitReady(ctx context.Context, volume string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not ready after %v", patience))
	defer cancel()
	for {
		if exec.CommandContext(ctx, filepath.Join(d.site.programs, "nix-dispatcher"), "ready", "--volume="+volume).Run() == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-d.done:
			return fmt.Errorf("the dispatcher has ended:\n%s", d.tail())
		case <-ctx.Done():
			return fmt.Errorf("the dispatcher: %w\n%s", context.Cause(ctx), d.tail())
		}
	}
}

// way leads clients of the site to the dispatcher.
func (d *dispatcher) way() way {
	return way{name: figures.Dispatcher, builders: "@" + filepath.Join(nixlab.VolumePath, d.name, "machines")}
}

// stop ends the dispatcher, and removes its spool: it can be large.
func (d *dispatcher) stop() {
	_ = d.command.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.done:
	case <-time.After(patience):
		_ = d.command.Process.Kill() // likewise
		<-d.done
	}
	_ = os.RemoveAll(filepath.Join(d.site.lab.Dir(), d.name, "spool")) // else the lab does
}

// tail is the end of the dispatcher's log.
func (d *dispatcher) tail() string {
	text, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

// peakMemory returns the most memory that the dispatcher had resident since its
// start or since forgetPeak, in MiB.
func (d *dispatcher) peakMemory() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.command.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("the dispatcher's memory: %w\n%s", err, d.tail())
	}
	return parsePeak(status)
}

// parsePeak reads proc_pid_status(5).
func parsePeak(status []byte) (float64, error) {
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(string(bytes.TrimSpace(value)), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("the kernel does not tell how much memory a process had at most")
}

// starter is a thread that lasts as long as the program: the kernel kills a child
// when the thread ends that started it, and Go ends threads as it likes.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// startBound starts a command that the kernel kills with this process, and that an
// interrupt from the terminal leaves alone.
func startBound(command *exec.Cmd) error {
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	result := make(chan error)
	starter() <- func() { result <- command.Start() }
	return <-result
}
