// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"os"
	"strconv"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/connect"
)

// headerFor names the build hook that started this program and the Nix process
// behind it. What cannot be read is left zero: the dispatcher then treats the
// connection as a client of its own, which is no reason to fail a build.
func headerFor(target connect.Target) connect.Header {
	hook, parent := process(os.Getppid())
	client, _ := process(parent)
	return connect.Header{Target: target, Namespace: pidNamespace(), Hook: hook, Client: client}
}

// process looks up a process and the id of its parent. The parent's id is 0
// where there is none in this pid namespace.
func process(pid int) (p connect.Process, parent int) {
	if pid <= 0 {
		return connect.Process{}, 0
	}
	p.PID = uint32(pid)
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return p, 0
	}
	parent, p.StartTime = parseStat(string(stat))
	return p, parent
}

// parseStat takes the parent's id (field 4) and the start time (field 22) from
// /proc/<pid>/stat, both 0 if it is not one. Field 2, the command, may hold
// blanks and parentheses; it ends at the last one.
func parseStat(stat string) (parent int, start uint64) {
	const afterCommand = 2 // the first field behind the command is number 3
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, 0
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 22-afterCommand {
		return 0, 0
	}
	parent, err := strconv.Atoi(fields[4-afterCommand-1])
	if err != nil {
		return 0, 0
	}
	start, err = strconv.ParseUint(fields[22-afterCommand-1], 10, 64)
	if err != nil {
		return 0, 0
	}
	return parent, start
}

// pidNamespace is the inode in the link /proc/self/ns/pid, "pid:[4026531836]",
// or 0.
func pidNamespace() uint64 {
	link, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0
	}
	digits, found := strings.CutPrefix(link, "pid:[")
	if !found {
		return 0
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 64)
	if err != nil {
		return 0
	}
	return inode
}
