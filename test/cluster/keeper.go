// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// starter starts processes from one thread that lasts as long as the cluster:
// the kernel takes the end of the thread that made a child for the end of the
// parent, and Go ends threads as it likes.
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

// keeper is a child process that removes a cluster's directory and control
// groups once this process has closed its end of a pipe, which the kernel does
// in case of a crash.
type keeper struct {
	command *exec.Cmd
	pipe    io.Closer
}

// keeperScript tries for a while: processes that are just being killed may
// still write, and a control group is in use until they are gone.
const keeperScript = `
cat >/dev/null
dir=$1
shift
for attempt in $(seq 300); do
	left=
	for group in "$@"; do
		[ -d "$group" ] || continue
		find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
		[ -d "$group" ] && left=$group
	done
	rm -rf "$dir" 2>/dev/null || left=$dir
	[ "$left" ] || exit 0
	sleep 0.1
done
echo "cannot remove $left" >&2
exit 1
`

func startKeeper(dir string, groups []string) (*keeper, error) {
	command := exec.Command("sh", append([]string{"-c", keeperScript, "cluster-keeper", dir}, groups...)...)
	command.Dir = "/"
	command.Stderr = os.Stderr
	// A session of its own: an interrupt from the terminal ends the cluster's
	// process, and the keeper has to outlive that.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start the keeper of the cluster: %w", err)
	}
	return &keeper{command: command, pipe: pipe}, nil
}

// release has all removed and waits for that.
func (k *keeper) release() error {
	if err := k.pipe.Close(); err != nil {
		return err
	}
	if err := k.command.Wait(); err != nil {
		return fmt.Errorf("remove the files and control groups of the cluster: %w", err)
	}
	return nil
}

// groupDirectories returns where a control group of this process lies, in
// every hierarchy.
func groupDirectories(group string) []string {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	own := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			own[strings.TrimPrefix(parts[1], "name=")] = parts[2]
		}
	}
	var directories []string
	for _, hierarchy := range hierarchies {
		directories = append(directories, filepath.Join("/sys/fs/cgroup", hierarchy, own[hierarchy], group))
	}
	return directories
}
