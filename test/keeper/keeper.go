// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package keeper sees to it that nothing of a test outlives the test's process, however
// that ends: processes die with it, and a child of its own removes its files.
package keeper

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// Keeper is a child process that removes a directory and control groups once this
// process has closed its end of a pipe, which the kernel does in case of a crash.
type Keeper struct {
	name    string
	command *exec.Cmd
	pipe    io.Closer
}

// script tries for a while: processes that are just being killed may
// still write, and a control group is in use until they are gone.
const script = `
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

// Start starts a keeper of that name for a directory and any number of control groups,
// all by their paths.
func Start(name, directory string, groups ...string) (*Keeper, error) {
	command := exec.Command("sh", append([]string{"-c", script, name, directory}, groups...)...)
	command.Dir = "/"
	command.Stderr = os.Stderr
	// A session of its own: an interrupt from the terminal ends this process, and the
	// keeper has to outlive that.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &Keeper{name: name, command: command, pipe: pipe}, nil
}

// Release has all removed and waits for that.
func (k *Keeper) Release() error {
	if err := k.pipe.Close(); err != nil {
		return err
	}
	if err := k.command.Wait(); err != nil {
		return fmt.Errorf("%s could not remove its files: %w", k.name, err)
	}
	return nil
}
