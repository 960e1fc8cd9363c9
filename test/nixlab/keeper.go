// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// starter starts processes from one operating system thread that lives as
// long as the lab. A child with a parent-death signal gets it when the thread
// that made it ends, and Go ends threads as it likes.
type starter struct {
	work chan func()
	done chan struct{}
}

func newStarter() *starter {
	s := &starter{work: make(chan func()), done: make(chan struct{})}
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

// start starts the command so that the kernel kills it with this process.
func (s *starter) start(command *exec.Cmd) error {
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error)
	s.work <- func() { result <- command.Start() }
	return <-result
}

func (s *starter) stop() {
	close(s.work)
	<-s.done
}

// keeper is a child process that removes a directory once this process has
// closed its end of a pipe, which the kernel does in case of a crash.
type keeper struct {
	command *exec.Cmd
	pipe    io.Closer
}

// keeperScript tries for a while: processes that are just being killed may
// still write.
const keeperScript = `
cat >/dev/null
for attempt in $(seq 100); do
	rm -rf "$1" 2>/dev/null && exit 0
	sleep 0.1
done
rm -rf "$1"
`

func startKeeper(dir string) (*keeper, error) {
	command := exec.Command("sh", "-c", keeperScript, "nixlab-keeper", dir)
	command.Dir = "/"
	command.Stderr = os.Stderr
	// A session of its own: an interrupt from the terminal ends the lab's
	// process, and the keeper has to outlive that.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start the keeper of the Nix lab: %w", err)
	}
	return &keeper{command: command, pipe: pipe}, nil
}

// release has the directory removed and waits for that.
func (k *keeper) release() error {
	if err := k.pipe.Close(); err != nil {
		return err
	}
	if err := k.command.Wait(); err != nil {
		return fmt.Errorf("remove the files of the Nix lab: %w", err)
	}
	return nil
}
