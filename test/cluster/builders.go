// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"context"
	"fmt"
	"os"
	"strings"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// Builder is a real Nix builder in the cluster's network. Pods reach its sshd
// on port 22 of [Builder.IP], which has the name [Builder.Host].
type Builder struct {
	*nixlab.Builder
	ip, host string
}

// IP is the builder's address. (That of the embedded builder is where its sshd
// listens: everywhere.)
func (b *Builder) IP() string { return b.ip }

// Host is the builder's name, which cluster DNS knows.
func (b *Builder) Host() string { return b.host }

// Lab is where the cluster's builders are; its key opens them.
func (c *Cluster) Lab() (*nixlab.Lab, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lab != nil {
		return c.lab, nil
	}
	if c.closed {
		return nil, fmt.Errorf("the cluster is closed")
	}
	lab, err := nixlab.New(nixlab.Options{Dir: c.dir, Progress: c.progress})
	c.lab = lab
	return lab, err
}

// StartBuilder boots a builder and connects it to the cluster. Its name, a DNS
// label of at most 15 characters, is unique among builders and nodes.
func (c *Cluster) StartBuilder(ctx context.Context, opts nixlab.BuilderOptions) (*Builder, error) {
	lab, err := c.Lab()
	if err != nil {
		return nil, err
	}
	opts.OwnNetwork = true
	started, err := lab.StartBuilder(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	b := &Builder{Builder: started, ip: nodeAddress(firstBuilder + len(c.builders)), host: builderName(started.Name())}
	c.builders = append(c.builders, b)
	c.mu.Unlock()
	if err := c.connectBuilder(ctx, b); err != nil {
		return nil, fmt.Errorf("connect builder %s: %w", b.Name(), err)
	}
	return b, c.writeHosts()
}

// RestartBuilder boots a builder again, with its old store, address and keys,
// after [nixlab.Host.Kill] or as it is.
func (c *Cluster) RestartBuilder(ctx context.Context, b *Builder) error {
	if err := b.Restart(ctx); err != nil {
		return err
	}
	if err := c.connectBuilder(ctx, b); err != nil {
		return fmt.Errorf("connect builder %s: %w", b.Name(), err)
	}
	return nil
}

func (c *Cluster) connectBuilder(ctx context.Context, b *Builder) error {
	pid, err := b.PID()
	if err != nil {
		return err
	}
	if err := c.plug(ctx, pid, b.Name(), b.ip); err != nil {
		return err
	}
	for _, n := range c.allNodes() {
		if err := c.routeBuilder(ctx, b, n); err != nil {
			return err
		}
	}
	return nil
}

// routeBuilder tells a builder, if it is up, the way to a node's pods.
func (c *Cluster) routeBuilder(ctx context.Context, b *Builder, n *Node) error {
	pid, err := b.PID()
	if err != nil {
		return nil // it learns the way when it boots
	}
	return inNetwork(ctx, pid, routeToPods(n))
}

// writeHosts tells cluster DNS the names of all builders.
func (c *Cluster) writeHosts() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines strings.Builder
	for _, b := range c.builders {
		fmt.Fprintln(&lines, b.ip, b.host)
	}
	return os.WriteFile(c.hostsFile(), []byte(lines.String()), 0o644)
}
