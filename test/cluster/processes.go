// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// eachProcess calls f with every process of this machine. One that ends
// meanwhile may or may not be among them.
func eachProcess(f func(pid string)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err == nil {
			f(entry.Name())
		}
	}
	return nil
}

// SignalPod sends a signal to the processes of a pod that run the program,
// whose file's name that is, on whatever node.
func (c *Cluster) SignalPod(uid, program string, signal syscall.Signal) error {
	var sent int
	var failed error
	err := eachProcess(func(pid string) {
		groups, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
		if err != nil || !strings.Contains(string(groups), "/pod"+uid+"/") {
			return
		}
		line, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		if first, _, _ := strings.Cut(string(line), "\x00"); err != nil || filepath.Base(first) != program {
			return
		}
		number, err := strconv.Atoi(pid)
		if err == nil {
			err = syscall.Kill(number, signal)
		}
		failed = errors.Join(failed, err)
		sent++
	})
	if err == nil && sent == 0 {
		err = fmt.Errorf("no process of pod %s runs %s", uid, program)
	}
	return errors.Join(err, failed)
}

// outerPID finds the process that the node numbers so.
func (n *Node) outerPID(inner int) (int, error) {
	namespace, err := os.Readlink(n.namespace("pid"))
	if err != nil {
		return 0, fmt.Errorf("%s is down", n.name)
	}
	found := 0
	err = eachProcess(func(pid string) {
		link, err := os.Readlink(filepath.Join("/proc", pid, "ns", "pid"))
		if err != nil || link != namespace {
			return
		}
		status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(status)) {
			numbers, ok := strings.CutPrefix(line, "NSpid:")
			if fields := strings.Fields(numbers); ok && fields[len(fields)-1] == strconv.Itoa(inner) {
				found, _ = strconv.Atoi(pid)
			}
		}
	})
	if err == nil && found == 0 {
		err = fmt.Errorf("%s has no process %d", n.name, inner)
	}
	return found, err
}
