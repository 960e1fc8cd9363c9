// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// traces are what a cluster might leave on this machine.
type traces struct {
	processes map[string]string // when each began, by its number
	dir       string
	group     string
	// system is what this machine says of places and settings that nodes use.
	system map[string]string
}

// tracesOf looks at a running cluster, all of whose processes descend from the
// one that made it.
func tracesOf(t *testing.T, holder int, dir string, system map[string]string) traces {
	t.Helper()
	found := traces{processes: map[string]string{}, dir: dir, group: filepath.Base(dir), system: system}
	parents := map[string]string{}
	if err := eachProcess(func(pid string) { parents[pid], _ = birth(pid) }); err != nil {
		t.Fatal(err)
	}
	namespaces := map[string]bool{}
	for pid := range parents {
		for ancestor := parents[pid]; ancestor != ""; ancestor = parents[ancestor] {
			if ancestor == strconv.Itoa(holder) {
				_, found.processes[pid] = birth(pid)
				for _, namespace := range namespacesOf(pid) {
					namespaces[namespace] = true
				}
			}
		}
	}
	// Those of this process, the node, the pod and the builder.
	if len(found.processes) < 10 || len(namespaces) < 2*len(namespaceKinds) {
		t.Fatalf("the cluster has only %d processes in %d namespaces", len(found.processes), len(namespaces))
	}
	return found
}

// birth returns the parent of a process and when it began; nothing if it has
// ended.
func birth(pid string) (parent, began string) {
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return "", ""
	}
	// The second field, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if fields[0] == "Z" {
		return "", "" // This machine's init has yet to hear of it.
	}
	return fields[1], fields[19]
}

// namespaceKinds are the namespaces that a node or a container may have of
// its own.
var namespaceKinds = []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"}

// namespacesOf returns the namespaces of a process, such as "net:[4026531840]".
func namespacesOf(pid string) []string {
	var found []string
	for _, kind := range namespaceKinds {
		if link, err := os.Readlink(filepath.Join("/proc", pid, "ns", kind)); err == nil {
			found = append(found, link)
		}
	}
	return found
}

// left says what is still there.
func (x traces) left() error {
	var left []string
	if err := eachProcess(func(pid string) {
		line, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		_, began := birth(pid)
		if began != "" && (began == x.processes[pid] || strings.Contains(string(line), x.dir)) {
			left = append(left, "process "+strings.ReplaceAll(string(line), "\x00", " "))
		}
		mounts, _ := os.ReadFile(filepath.Join("/proc", pid, "mountinfo"))
		if strings.Contains(string(mounts), x.dir) {
			left = append(left, "mount seen by "+pid)
		}
	}); err != nil {
		return err
	}
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && entry.Name() == x.group {
			left = append(left, "control group "+path)
		}
		return nil // one that vanishes meanwhile is none
	})
	if err != nil {
		return err
	}
	if _, err := os.Lstat(x.dir); err == nil {
		left = append(left, "directory "+x.dir)
	}
	now := systemState()
	for _, what := range slices.Sorted(maps.Keys(now)) {
		if now[what] != x.system[what] {
			left = append(left, fmt.Sprintf("%s: %s, was %s", what, now[what], x.system[what]))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	return nil
}

// systemState looks at what nodes have of their own, or would change if they
// had not.
func systemState() map[string]string {
	state := map[string]string{}
	for _, place := range []string{
		"/etc/cni", "/opt/cni", "/run/containerd", "/run/flannel", "/run/netns", "/var/lib/cni", "/var/lib/containerd",
		"/var/lib/kubelet", "/var/log/containers", "/var/log/pods", "/usr/libexec/kubernetes",
	} {
		_, err := os.Stat(place)
		state[place+" is there"] = fmt.Sprint(err == nil)
	}
	for _, setting := range []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/hostname",
		"net/ipv4/ip_forward", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
	} {
		value, _ := os.ReadFile(filepath.Join("/proc/sys", setting))
		state[setting] = strings.TrimSpace(string(value))
	}
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		rules, _ := exec.Command(command).Output()
		state[command+" knows Kubernetes"] = fmt.Sprint(strings.Contains(string(rules), "KUBE-"))
	}
	return state
}

// busyCluster starts a cluster with a builder and a pod.
func busyCluster(ctx context.Context, opts Options) (*Cluster, error) {
	c, err := Start(ctx, opts)
	if err != nil {
		return nil, err
	}
	if _, err := c.StartBuilder(ctx, nixlab.BuilderOptions{Name: "b"}); err != nil {
		return c, err
	}
	if err := c.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: sleeper}
spec:
  containers: [{name: c, image: %q, volumeMounts: [{name: v, mountPath: /v}, {name: w, mountPath: /w}]}]
  volumes: [{name: v, emptyDir: {}}, {name: w, emptyDir: {medium: Memory}}]
`, pauseImage)); err != nil {
		return c, err
	}
	_, err = c.Kubectl(ctx, "wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s")
	return c, err
}

func TestLeavesNothing(t *testing.T) {
	ctx := withTimeout(t)
	system := systemState()
	parts, err := FindParts(root)
	if err != nil {
		t.Fatal(err)
	}
	c, err := busyCluster(ctx, Options{Parts: parts})
	if c != nil {
		defer c.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	traces := tracesOf(t, os.Getpid(), c.Dir(), system)
	began := time.Now()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("closed after %v", time.Since(began))
	if err := traces.left(); err != nil {
		t.Error(err)
	}
}

// crashDirectory is the variable that makes this test program hold a cluster
// in that directory until it is killed.
const crashDirectory = "CLUSTER_TEST_CRASH"

// holdUntilKilled says on standard output that a cluster is up.
func holdUntilKilled(dir string) {
	parts, err := FindParts(root)
	if err == nil {
		_, err = busyCluster(context.Background(), Options{Parts: parts, Dir: dir})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("up")
	select {}
}

// A process that is killed takes its cluster with it.
func TestLeavesNothingWhenKilled(t *testing.T) {
	ctx := withTimeout(t)
	system := systemState()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	holder := exec.CommandContext(ctx, self)
	holder.Env = append(os.Environ(), crashDirectory+"="+dir)
	said, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	var word [2]byte
	if _, err := said.Read(word[:]); err != nil || string(word[:]) != "up" {
		_ = holder.Process.Kill()
		t.Fatalf("it said %q: %v", word, err)
	}
	directories, err := filepath.Glob(filepath.Join(dir, "nixcluster-*"))
	if err != nil || len(directories) != 1 {
		t.Fatal(directories, err)
	}
	traces := tracesOf(t, holder.Process.Pid, directories[0], system)
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	began := time.Now()
	eventually(ctx, t, traces.left)
	t.Logf("all was gone after %v", time.Since(began))
}
