// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command demo shows the whole thing at work on one machine without a cluster:
// a real API server, the operator, three real builders of which one is set up
// wrongly, and a real nix-build that reaches them through the dispatcher. It
// exits with a failure if anything is not as it says.
//
// With KEEP=1 in the environment everything is left running afterwards, and
// the demo says how to look around and how to end it.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// The demo runs in a process of its own session, so that Ctrl-C at the
// terminal reaches none of the servers directly, and so that it can stay when
// the command returns. The two talk over two pipes.
const (
	workerVariable = "DEMO_WORKER"
	reportFile     = 3 // worker to command: a line when everything is left running
	leashFile      = 4 // closed when the command ends
)

func main() {
	if os.Getenv(workerVariable) != "" {
		// Programs that the demo starts end with the thread that started them.
		runtime.LockOSThread()
		os.Exit(work())
	}
	status, err := supervise()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	os.Exit(status)
}

// supervise starts the worker, passes interrupts on to it, and returns its
// exit status, or 0 at once when it has left everything running.
func supervise() (status int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	report, reportWrite, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	leashRead, leash, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	defer leash.Close()
	worker := exec.Command(self)
	worker.Env = append(os.Environ(), workerVariable+"=1")
	worker.Stdout, worker.Stderr = os.Stdout, os.Stderr
	worker.ExtraFiles = []*os.File{reportWrite, leashRead}
	worker.SysProcAttr = &syscall.SysProcAttr{Setsid: true}

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	if err := worker.Start(); err != nil {
		return 1, err
	}
	reportWrite.Close()
	leashRead.Close()
	go func() {
		for range signals {
			_ = worker.Process.Signal(syscall.SIGTERM) // it may have ended just now
		}
	}()
	if _, err := bufio.NewReader(report).ReadString('\n'); err == nil {
		return 0, nil
	}
	var exit *exec.ExitError
	if err := worker.Wait(); err != nil && !errors.As(err, &exit) {
		return 1, err
	}
	return worker.ProcessState.ExitCode(), nil
}

// work is the worker: the demo, its clean-up, and the exit status.
func work() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	detached := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(leashFile, "leash")) // its end is the message
		select {
		case <-detached:
		default:
			cancel(errors.New("the command has ended"))
		}
	}()

	// The library that starts the API server logs nothing that matters here.
	log.SetLogger(logr.Discard())
	screen := newScreen(os.Stdout)
	d := &demo{screen: screen}
	err := d.run(ctx)
	if err == nil && os.Getenv("KEEP") == "1" {
		if err = d.leaveRunning(detached); err == nil {
			<-ctx.Done()
		}
	}
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if cleanErr := d.cleanUp(); err == nil {
		err = cleanErr
	}
	if err != nil {
		screen.line("\ndemo: FAILED: " + err.Error())
		return 1
	}
	screen.line(fmt.Sprintf("\ndemo: all as it should be (%.0f s)", screen.age().Seconds()))
	return 0
}

// leaveRunning says how to look around and lets the command return. From then
// on the demo writes to a file.
func (d *demo) leaveRunning(detached chan<- struct{}) error {
	d.explain()
	file, err := os.Create(filepath.Join(d.dir, "demo.log"))
	if err != nil {
		return err
	}
	defer file.Close()
	close(detached)
	for _, descriptor := range []int{1, 2} {
		if err := syscall.Dup3(int(file.Fd()), descriptor, 0); err != nil {
			return err
		}
	}
	report := os.NewFile(reportFile, "report")
	defer report.Close()
	_, err = fmt.Fprintln(report, "running")
	return err
}
