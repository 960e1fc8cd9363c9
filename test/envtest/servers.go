// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package envtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// stopServers ends the servers that have their files in a directory, whoever
// started them, and removes it.
func stopServers(dir string) error {
	deadline := time.Now().Add(stopTimeout)
	for signal := syscall.SIGTERM; ; {
		running, err := serversOf(dir)
		if err != nil {
			return err
		}
		if len(running) == 0 {
			return os.RemoveAll(dir)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of the API server in %s did not end in %s", running, dir, stopTimeout)
		}
		for _, pid := range running {
			if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end process %d of the API server in %s: %w", pid, dir, err)
			}
		}
		if time.Until(deadline) < stopTimeout/2 {
			signal = syscall.SIGKILL
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// serversOf returns the processes whose argument is a file below one of the
// directories that newPlane makes. No other program is given those.
func serversOf(dir string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range files {
		arguments, err := os.ReadFile(file)
		if err != nil {
			continue // It ended meanwhile.
		}
		if !bytes.Contains(arguments, []byte("\x00--data-dir="+filepath.Join(dir, "etcd")+"\x00")) &&
			!bytes.Contains(arguments, []byte("\x00--cert-dir="+filepath.Join(dir, "kube-apiserver")+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
