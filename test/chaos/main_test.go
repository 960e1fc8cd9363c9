// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// The defaults are for a run among many other tests.
var (
	seedFlag     = flag.Uint64("seed", 2611, "where graphs and faults come from: equal seeds give equal plans")
	durationFlag = flag.Duration("duration", 6*time.Second, "how long there are faults")
	killsFlag    = flag.Int("kills", 5, "how many builders are killed in known phases")
	reportFlag   = flag.String("report", "", "`file` for the figures of the kills, as JSON")
	logsFlag     = flag.String("logs", "", "`directory` for complete logs; failures print them in any case")
)

// programsVariable is set in the process that has namespaces of its own. Its
// value is the directory of the programs under test.
const programsVariable = "CHAOS_PROGRAMS"

// disks is where the namespace of the tests has a file system in memory. It is a
// directory of every machine, and is covered in that namespace only.
const disks = "/mnt"

func TestMain(m *testing.M) {
	flag.Parse()
	inside := os.Getenv(programsVariable) != ""
	switch {
	case inside:
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case testing.Short() || nixlab.Prerequisites() != nil:
		os.Exit(m.Run()) // what needs no builders
	}
	status, err := outside()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		status = 1
	}
	os.Exit(status)
}

// requireLab skips a test where builders cannot be had.
func requireLab(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes tens of seconds")
	}
	if err := nixlab.Prerequisites(); err != nil {
		t.Skip(err)
	}
}

// outside makes what needs the internet or the compiler, and runs the tests in
// another process with network and mounts of its own.
func outside() (status int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	say := func(line string) { fmt.Fprintln(os.Stderr, line) }
	if _, err := nixlab.PrepareRootFS(ctx, say, nixlab.Versions()...); err != nil {
		return 0, err
	}
	programs, err := os.MkdirTemp("", "chaos-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(programs)) }()
	build := exec.CommandContext(ctx, "go", "build", "-o", programs+"/", "./cmd/nix-dispatcher", "./cmd/nix-dispatch-connect")
	build.Dir = filepath.Join("..", "..")
	// The flags of `make build`, so that both share what they compile.
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if output, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the programs: %w\n%s", err, output)
	}
	return isolated(programs)
}

// isolated runs this program in namespaces of its own and returns its status.
func isolated(programs string) (int, error) {
	// The child is killed with the thread that has made it.
	runtime.LockOSThread()
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Env = append(os.Environ(), programsVariable+"="+programs)
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	// Whatever ends the tests ends the child; this process tidies up after it.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := self.Start(); err != nil {
		return 0, fmt.Errorf("start in namespaces of its own: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- self.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = self.Process.Signal(s) // it may have ended
		case err := <-done:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, err
			}
			// By a signal it is -1, which is no status either.
			return max(self.ProcessState.ExitCode(), -self.ProcessState.ExitCode()), nil
		}
	}
}

// furnish gives new namespaces what the tests need.
func furnish() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part the mounts: %w", err)
	}
	if err := syscall.Mount("chaos", disks, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount memory on %s: %w", disks, err)
	}
	return run(context.Background(), "ip", "link", "set", "lo", "up")
}

// run runs a program of this machine; what it printed is in the error.
func run(ctx context.Context, name string, args ...string) error {
	if output, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, output)
	}
	return nil
}
