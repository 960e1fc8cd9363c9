// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Parts are the directories with the programs that a cluster is made of.
type Parts struct {
	// Kubernetes holds etcd, the programs of Kubernetes, coredns and kubectl.
	Kubernetes string
	// Node holds containerd, runc, the CNI plugins and pause.
	Node string
}

// FindParts returns the parts that `make cluster-parts` has built for the
// source tree at root.
func FindParts(root string) (Parts, error) {
	var parts Parts
	for folder, found := range map[string]*string{"kubernetes": &parts.Kubernetes, "node": &parts.Node} {
		output, err := exec.Command(filepath.Join(root, "hack", folder, "build.sh"), "--where").Output()
		if err != nil {
			return Parts{}, fmt.Errorf("ask hack/%s/build.sh where its programs are: %w", folder, err)
		}
		*found = strings.TrimSpace(string(output))
	}
	for _, program := range []string{filepath.Join(parts.Kubernetes, "kubelet"), filepath.Join(parts.Node, "runc")} {
		if _, err := os.Stat(program); err != nil {
			return Parts{}, fmt.Errorf("there is no %s: run `make cluster-parts`", program)
		}
	}
	return parts, nil
}

// hierarchies are the control groups that a node needs; see scripts/node.sh.
var hierarchies = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"}

// Prerequisites says what this machine lacks to run a cluster, one error for
// each thing; nil means nothing.
func Prerequisites() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("a cluster needs Linux, this is %s", runtime.GOOS)
	}
	var missing []error
	if os.Geteuid() != 0 {
		missing = append(missing, errors.New("a cluster needs root: it makes namespaces and mounts"))
	}
	packages := map[string]string{
		"ip": "iproute2", "iptables": "iptables", "mount": "mount", "nsenter": "util-linux", "unshare": "util-linux",
	}
	for _, program := range []string{"ip", "iptables", "mount", "nsenter", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, fmt.Errorf("a cluster needs %s (package %s)", program, packages[program]))
		}
	}
	for _, hierarchy := range hierarchies {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", hierarchy, "cgroup.procs")); err != nil {
			missing = append(missing, fmt.Errorf("a cluster needs the version 1 control group %s at /sys/fs/cgroup/%s", hierarchy, hierarchy))
		}
	}
	systems, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		missing = append(missing, err)
	} else if !strings.Contains(string(systems), "\toverlay\n") {
		missing = append(missing, errors.New("a cluster needs the file system overlay in the kernel"))
	}
	return errors.Join(missing...)
}
