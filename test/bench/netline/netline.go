// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package netline makes network namespaces and the lines between them: a plain
// pair of virtual Ethernet devices, or a line with a round-trip time and a rate
// of lost packets.
//
// Slow lines are made of two TUN devices and goroutines that carry packets from
// one to the other, later, or not at all. The netem queueing discipline does the
// same inside of the kernel, but kernels of small virtual machines are often built
// without it, and figures should not depend on which of the two there was.
//
// Nothing is named and nothing outlives the process: namespaces and devices are
// held by open files, and the kernel removes them with the last one.
package netline

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace with nothing but loopback in it, which is up.
type Namespace struct {
	file *os.File
}

// NewNamespace makes a namespace. It needs root.
func NewNamespace() (*Namespace, error) {
	n := &Namespace{}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		n.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		if err != nil {
			return err
		}
		return ip("link", "set", "lo", "up")
	})
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Path names the namespace to programs such as nsenter, as long as this process
// has it open.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

// Do runs f on a thread that is in the namespace. Sockets that f makes stay in it,
// and so do processes that it starts. Goroutines that f starts do not.
func (n *Namespace) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// Close gives the namespace up. It is gone once no process is in it.
func (n *Namespace) Close() {
	if n.file != nil {
		n.file.Close()
	}
}

// onOwnThread runs f, which may enter another namespace, and puts the thread back into
// the one that it came from. The thread must not just end: the kernel kills children
// that are to die with their parent when the thread ends that started them.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer home.Close()
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		} else { // Better lose the thread than leave it there.
			err = errors.Join(err, fmt.Errorf("leave a network namespace: %w", back))
		}
		result <- err
	}()
	return <-result
}

// ip runs the program of that name on the thread of its caller.
func ip(args ...string) error {
	output, err := exec.Command("ip", args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("the program ip is missing (package iproute2)")
	}
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
