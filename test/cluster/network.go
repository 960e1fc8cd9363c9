// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// connectNode gives a node its place in the cluster's network: the bridge
// itself is on the first one.
func (c *Cluster) connectNode(ctx context.Context, n *Node) error {
	if n.number == 1 {
		commands := []string{
			"link add lan type bridge",
			"addr add " + nodeAddress(1) + "/24 dev lan",
			"link set lan up",
			// Programs of the node reach Services as pods do.
			"route add " + serviceNetwork + " dev lan",
		}
		return inNetwork(ctx, n.pid(), commands...)
	}
	if err := c.plug(ctx, n.pid(), n.name, nodeAddress(n.number)); err != nil {
		return err
	}
	if err := inNetwork(ctx, n.pid(), "route add "+serviceNetwork+" dev lan"); err != nil {
		return err
	}
	for _, other := range c.allNodes() {
		if other == n || other.pid() == 0 {
			continue
		}
		if err := inNetwork(ctx, n.pid(), routeToPods(other)); err != nil {
			return err
		}
		if err := inNetwork(ctx, other.pid(), routeToPods(n)); err != nil {
			return err
		}
	}
	c.mu.Lock()
	builders := c.builders
	c.mu.Unlock()
	for _, b := range builders {
		if err := c.routeBuilder(ctx, b, n); err != nil {
			return err
		}
	}
	return nil
}

// routeToPods is the route that others need to a node's pods.
func routeToPods(n *Node) string {
	return "route replace " + podNetwork(n.number) + " via " + nodeAddress(n.number)
}

// plug connects the network namespace of a process to the cluster's bridge, by
// an interface named lan.
func (c *Cluster) plug(ctx context.Context, pid int, name, address string) error {
	if err := inNetwork(ctx, c.Node(1).pid(),
		fmt.Sprintf("link add name %s type veth peer name lan netns %d", name, pid),
		"link set dev "+name+" master lan up",
	); err != nil {
		return err
	}
	return inNetwork(ctx, pid, "link set lo up", "addr add "+address+"/24 dev lan", "link set lan up")
}

// inNetwork runs commands of ip in the network namespace of a process.
func inNetwork(ctx context.Context, pid int, commands ...string) error {
	for _, command := range commands {
		line := append([]string{"--net=/proc/" + strconv.Itoa(pid) + "/ns/net", "ip"}, strings.Fields(command)...)
		if _, err := output(exec.CommandContext(ctx, "nsenter", line...)); err != nil {
			return err
		}
	}
	return nil
}
