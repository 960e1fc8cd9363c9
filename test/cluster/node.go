// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"bufio"
	"context"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed scripts/node.sh
var nodeScript []byte

// Node is one machine of a cluster.
type Node struct {
	cluster *Cluster
	number  int
	name    string
	dir     string

	mu      sync.Mutex
	command *exec.Cmd     // process 1 of the node; nil: down
	done    chan struct{} // closed once process 1 is gone
}

// Name is the node's name in Kubernetes.
func (n *Node) Name() string { return n.name }

// AddNode makes the cluster larger by a node and returns once pods can run
// there.
func (c *Cluster) AddNode(ctx context.Context) (*Node, error) {
	n, err := c.bootNode(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.StartService(Containerd); err != nil {
		return nil, err
	}
	c.mu.Lock()
	images := c.images
	c.mu.Unlock()
	if err := n.importAll(ctx, images); err != nil {
		return nil, err
	}
	for _, service := range []string{Kubelet, Proxy} {
		if err := n.StartService(service); err != nil {
			return nil, err
		}
	}
	return n, n.waitReady(ctx)
}

// bootNode makes a node that runs nothing yet.
func (c *Cluster) bootNode(ctx context.Context) (*Node, error) {
	c.mu.Lock()
	number := len(c.nodes) + 1
	if number > maxNodes || c.closed {
		c.mu.Unlock()
		return nil, fmt.Errorf("no node %d: the cluster is closed or at its limit of %d", number, maxNodes)
	}
	n := &Node{cluster: c, number: number, name: nodeName(number), dir: filepath.Join(c.dir, nodeName(number))}
	c.nodes = append(c.nodes, n)
	c.mu.Unlock()
	if err := n.layOut(); err != nil {
		return nil, fmt.Errorf("%s: %w", n.name, err)
	}
	if err := n.start(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", n.name, err)
	}
	if err := c.connectNode(ctx, n); err != nil {
		return nil, fmt.Errorf("%s: %w", n.name, err)
	}
	return n, nil
}

func (n *Node) layOut() error {
	for _, name := range []string{"changes", "disk", "kubelet"} {
		if err := os.MkdirAll(filepath.Join(n.dir, name), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"node.sh":         string(nodeScript),
		"cni.conflist":    n.networkConfig(),
		"containerd.toml": n.containerdConfig(),
		"kubelet.yaml":    n.kubeletConfig(),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// bootTimeout is far more than a node needs on a loaded machine.
const bootTimeout = 30 * time.Second

// start boots the node and waits until services can start there.
func (n *Node) start(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	ready, readyWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	consolePath := filepath.Join(n.dir, "console.log")
	console, err := os.Create(consolePath)
	if err != nil {
		readyWrite.Close()
		return err
	}
	defer console.Close()
	command := exec.Command("bash", filepath.Join(n.dir, "node.sh"), n.dir, n.name, n.cluster.group+"/"+n.name)
	command.Dir = "/"
	command.Stdout, command.Stderr = console, console
	command.ExtraFiles = []*os.File{readyWrite}
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
		Setsid:     true,
	}
	err = n.cluster.starter.Start(command)
	readyWrite.Close()
	if err != nil {
		return err
	}
	n.command, n.done = command, make(chan struct{})
	go func() {
		defer close(n.done)
		_ = command.Wait() // its end is all that matters
	}()
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > bootTimeout {
		_ = ready.SetReadDeadline(time.Now().Add(bootTimeout))
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	if _, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		n.killLocked()
		text, _ := os.ReadFile(consolePath)
		return fmt.Errorf("it did not boot: %w\n%s", err, tail(string(text)))
	}
	return nil
}

// Kill ends every process of the node at once, as a power failure does. A
// node does not come back. Killing the first one ends the cluster's network.
func (n *Node) Kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.killLocked()
}

func (n *Node) killLocked() {
	if n.command == nil {
		return
	}
	_ = n.command.Process.Kill() // fails only if it is gone already
	<-n.done
	n.command = nil
}

// pid is the number of the node's process 1 on this machine; 0 if it is down.
func (n *Node) pid() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.command == nil {
		return 0
	}
	return n.command.Process.Pid
}

// namespace is the path of one of the node's namespaces.
func (n *Node) namespace(kind string) string {
	return filepath.Join("/proc", strconv.Itoa(n.pid()), "ns", kind)
}

// Command prepares a command that runs on the node, as root.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	line := append([]string{
		"--target", strconv.Itoa(n.pid()), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--wdns=/",
	}, args...)
	command := exec.CommandContext(ctx, "nsenter", line...)
	command.Env = append(os.Environ(), "KUBECONFIG="+n.cluster.Kubeconfig(),
		"PATH="+strings.Join([]string{n.cluster.parts.Node, n.cluster.parts.Kubernetes, os.Getenv("PATH")}, ":"))
	command.WaitDelay = 10 * time.Second
	return command
}

// Exec runs a command on the node, as root, and returns what it printed.
func (n *Node) Exec(ctx context.Context, args ...string) (string, error) {
	return output(n.Command(ctx, args...))
}

// Dial connects from within the node's network.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	file, err := os.Open(n.namespace("net"))
	if err != nil {
		return nil, fmt.Errorf("dial %s from %s: %w", address, n.name, err)
	}
	defer file.Close()
	type result struct {
		connection net.Conn
		err        error
	}
	dialed := make(chan result)
	go func() {
		// This thread changes its network, so nothing else may run on it: it
		// ends with the goroutine, which does not unlock it.
		runtime.LockOSThread()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			dialed <- result{err: fmt.Errorf("enter the network of %s: %w", n.name, err)}
			return
		}
		connection, err := new(net.Dialer).DialContext(ctx, network, address)
		dialed <- result{connection, err}
	}()
	r := <-dialed
	return r.connection, r.err
}

// importAll loads images into the node's containerd.
func (n *Node) importAll(ctx context.Context, archives []string) error {
	if err := n.cluster.waitFor(ctx, "containerd on "+n.name, Containerd, func(ctx context.Context) error {
		_, err := n.Exec(ctx, "ctr", "version")
		return err
	}); err != nil {
		return err
	}
	for _, archive := range archives {
		if _, err := n.Exec(ctx, "ctr", "--namespace=k8s.io", "images", "import", "--local", archive); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return nil
}

// waitReady waits until Kubernetes runs pods on the node.
func (n *Node) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready after %v", readyTimeout))
	defer cancel()
	return n.cluster.waitFor(ctx, n.name, Kubelet, func(ctx context.Context) error {
		status, err := n.cluster.Kubectl(ctx, "get", "node", n.name,
			"-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}{.spec.taints}`)
		if err == nil && status != "True" {
			err = fmt.Errorf("condition Ready and taints of %s: %s", n.name, status)
		}
		return err
	})
}
