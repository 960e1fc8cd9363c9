// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// shell runs command lines the way a person at a terminal would, and shows
// both the lines and what they print.
type shell struct {
	screen *screen
	dir    string   // where commands run
	env    []string // what the person would have exported
}

// commandGrace is how long an interrupted command has to clean up.
const commandGrace = 20 * time.Second

// run shows a command line, runs it with bash, shows its output as it comes,
// and returns its standard output. It fails if the command does.
func (s *shell) run(ctx context.Context, line string) (string, error) {
	s.screen.command(line)
	defer s.screen.watch(line)()
	command := exec.CommandContext(ctx, "bash", "-c", line)
	command.Dir, command.Env = s.dir, s.env
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGTERM) }
	command.WaitDelay = commandGrace
	var output bytes.Buffer
	command.Stdout, command.Stderr = io.MultiWriter(s.screen, &output), s.screen
	if err := command.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("%s: %w", line, err)
	}
	return output.String(), nil
}

// background is a program that runs beside the demo.
type background struct {
	name    string
	log     string // its output
	command *exec.Cmd
	done    chan struct{}
	err     error // valid once done is closed
}

// start shows a command line and starts it as a program that goes on until
// stop; its output goes to a file. args are the words of the line.
func (s *shell) start(name string, args ...string) (*background, error) {
	b := &background{name: name, log: filepath.Join(s.dir, name+".log"), done: make(chan struct{})}
	s.screen.command(strings.Join(args, " \\\n      ") + " \\\n      >" + filepath.Base(b.log) + " 2>&1 &")
	log, err := os.Create(b.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Through bash, as typed: it looks the program up where the person would.
	b.command = exec.Command("bash", "-c", "exec "+strings.Join(args, " "))
	b.command.Dir, b.command.Env = s.dir, s.env
	b.command.Stdout, b.command.Stderr = log, log
	b.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := b.command.Start(); err != nil {
		return nil, fmt.Errorf("start the %s: %w", name, err)
	}
	go func() {
		defer close(b.done)
		b.err = b.command.Wait()
	}()
	return b, nil
}

// waitFor waits until the condition holds, and fails when the program ends or
// the time is over.
func (b *background) waitFor(ctx context.Context, limit time.Duration, what string, condition func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the %s is not %s after %v", b.name, what, limit))
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; the end of its log:\n%s", context.Cause(ctx), b.lastLines())
		case <-b.done:
			return fmt.Errorf("the %s ended (%v); the end of its log:\n%s", b.name, b.err, b.lastLines())
		case <-ticker.C:
		}
	}
	return nil
}

func (b *background) lastLines() string {
	text, err := os.ReadFile(b.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// stop asks the program to end and waits for it.
func (b *background) stop() error {
	if err := b.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-b.done:
		return nil
	case <-time.After(commandGrace):
		_ = b.command.Process.Kill() // it may have ended just now
		<-b.done
		return fmt.Errorf("the %s had to be killed: it did not end within %v", b.name, commandGrace)
	}
}
