// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package keeper

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Starter starts processes from one thread that lasts until Stop: the kernel takes the
// end of the thread that made a child for the end of the parent, and Go ends threads
// as it likes.
type Starter struct {
	work chan func()
	done chan struct{}
}

// NewStarter returns a Starter that has to be stopped.
func NewStarter() *Starter {
	s := &Starter{work: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for f := range s.work {
			f()
		}
	}()
	return s
}

// Start starts the command so that the kernel kills it with this process. Its
// SysProcAttr must not be nil.
func (s *Starter) Start(command *exec.Cmd) error {
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error)
	s.work <- func() { result <- command.Start() }
	return <-result
}

// Stop ends the thread.
func (s *Starter) Stop() {
	close(s.work)
	<-s.done
}
