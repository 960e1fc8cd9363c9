// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"nixbuilder.io/nix-builder-operator/test/keeper"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// Options for [Start].
type Options struct {
	// Parts are the programs to run; see [FindParts]. Required.
	Parts Parts
	// Dir is where the cluster makes its own directory; the system's directory
	// for temporary files by default. It must be on a real file system (not an
	// overlay): images and volumes lie there.
	Dir string
	// Images are archives that every node gets, as `make image` makes them.
	Images []string
	// Progress is told, line by line, what takes its time.
	Progress func(string)
}

// Cluster is a running cluster. Its methods can be called from several
// goroutines.
type Cluster struct {
	parts       Parts
	dir         string
	group       string // its control group
	progress    func(string)
	keeper      *keeper.Keeper
	starter     *keeper.Starter
	credentials credentials

	mu       sync.Mutex
	nodes    []*Node
	images   []string
	lab      *nixlab.Lab
	builders []*Builder
	closed   bool
}

// readyTimeout is far more than a cluster takes to start on a loaded machine.
const readyTimeout = 3 * time.Minute

// Start makes a cluster of one node and returns once pods can run there. Call
// [Cluster.Close] when done; if the process dies before that, all of the
// cluster dies too and its files are removed.
func Start(ctx context.Context, opts Options) (_ *Cluster, err error) {
	if err := Prerequisites(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(opts.Dir, "nixcluster-")
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	c := &Cluster{parts: opts.Parts, dir: dir, group: filepath.Base(dir), progress: opts.Progress}
	if c.progress == nil {
		c.progress = func(string) {}
	}
	if c.keeper, err = keeper.Start("cluster-keeper", dir, groupDirectories(c.group)...); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	c.starter = keeper.NewStarter()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready after %v", readyTimeout))
	defer cancel()
	if err := c.layOut(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if err := c.startFirst(ctx, opts.Images); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return c, nil
}

// layOut writes the files that the control plane reads.
func (c *Cluster) layOut() (err error) {
	if c.credentials, err = writeCredentials(c.dir, maxNodes); err != nil {
		return err
	}
	for user := range c.credentials.tokens {
		if err := os.WriteFile(c.kubeconfigFile(user), []byte(c.kubeconfig(user)), 0o600); err != nil {
			return err
		}
	}
	if err := os.WriteFile(c.hostsFile(), nil, 0o644); err != nil {
		return err
	}
	if err := writeImage(c.pauseArchive(), pauseImage, imageConfig{Entrypoint: []string{"/pause"}}, func(w *layer) error {
		return w.file(filepath.Join(c.parts.Node, "pause"), "pause")
	}); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, "Corefile"), []byte(c.corefile()), 0o644)
}

// startFirst boots the node with the control plane. What does not depend on
// each other starts together.
func (c *Cluster) startFirst(ctx context.Context, images []string) error {
	began := time.Now()
	c.images = append([]string{c.pauseArchive()}, images...)
	node, err := c.bootNode(ctx)
	if err != nil {
		return err
	}
	for _, service := range []string{Etcd, APIServer, Containerd} {
		if err := node.StartService(service); err != nil {
			return err
		}
	}
	imported := make(chan error, 1)
	go func() { imported <- node.importAll(ctx, c.images) }()
	if err := c.waitFor(ctx, "the API server", APIServer, func(ctx context.Context) error {
		_, err := c.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	}); err != nil {
		return errors.Join(err, <-imported)
	}
	c.progress(fmt.Sprintf("API server is ready (%.1f s)", time.Since(began).Seconds()))
	for _, service := range []string{ControllerManager, Scheduler, DNS, Kubelet, Proxy} {
		if err := node.StartService(service); err != nil {
			return errors.Join(err, <-imported)
		}
	}
	if err := <-imported; err != nil {
		return err
	}
	c.progress(fmt.Sprintf("images are there (%.1f s)", time.Since(began).Seconds()))
	if err := c.Apply(ctx, baseObjects()); err != nil {
		return err
	}
	if err := node.waitReady(ctx); err != nil {
		return err
	}
	err = c.waitFor(ctx, "the default service account", ControllerManager, func(ctx context.Context) error {
		_, err := c.Kubectl(ctx, "get", "serviceaccount", "default")
		return err
	})
	c.progress(fmt.Sprintf("%s is ready (%.1f s)", node.name, time.Since(began).Seconds()))
	return err
}

// waitFor tries until it works. The log of the service is part of the error
// if it never does.
func (c *Cluster) waitFor(ctx context.Context, what, service string, try func(context.Context) error) error {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err // not that the last try was cut off
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w\nend of the log of %s:\n%s", what, context.Cause(ctx), last, service, tail(c.Node(1).Log(service)))
		case <-ticker.C:
		}
	}
}

// tail returns the end of a log, for error messages.
func tail(text string) string {
	const limit = 3000
	text = strings.TrimSpace(text)
	return text[max(0, len(text)-limit):]
}

// Dir is the cluster's own directory, a good place for files that have to
// vanish with it.
func (c *Cluster) Dir() string { return c.dir }

// Kubeconfig is a file with which kubectl and Helm reach the cluster as its
// administrator, from within the network of its first node.
func (c *Cluster) Kubeconfig() string { return c.kubeconfigFile(userAdmin) }

func (c *Cluster) kubeconfigFile(user string) string {
	return filepath.Join(c.dir, strings.ReplaceAll(user, ":", "-")+".kubeconfig")
}

func (c *Cluster) hostsFile() string { return filepath.Join(c.dir, "hosts") }

func (c *Cluster) pauseArchive() string { return filepath.Join(c.dir, "pause.tar") }

// Config is for clients in this process; the administrator's.
func (c *Cluster) Config() *rest.Config {
	return &rest.Config{
		Host:            serverURL(),
		BearerToken:     c.credentials.tokens[userAdmin],
		TLSClientConfig: rest.TLSClientConfig{CAData: c.credentials.authority},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.Node(1).Dial(ctx, network, address)
		},
		QPS: -1,
	}
}

// Node returns a node, counted from 1; nil if there is none.
func (c *Cluster) Node(number int) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number < 1 || number > len(c.nodes) {
		return nil
	}
	return c.nodes[number-1]
}

func (c *Cluster) allNodes() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nodes)
}

// Command prepares a program of this machine, run within the network of the
// first node, as the cluster's administrator: kubectl, helm, curl.
func (c *Cluster) Command(ctx context.Context, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + c.Node(1).namespace("net")}, args...)...)
	command.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "PATH="+c.parts.Kubernetes+":"+os.Getenv("PATH"))
	command.WaitDelay = 10 * time.Second
	return command
}

// Kubectl runs kubectl and returns what it printed. What it said of a failure
// is part of the error.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return output(c.Command(ctx, append([]string{filepath.Join(c.parts.Kubernetes, "kubectl")}, args...)...))
}

// Apply applies manifests.
func (c *Cluster) Apply(ctx context.Context, manifests string) error {
	command := c.Command(ctx, filepath.Join(c.parts.Kubernetes, "kubectl"), "apply", "-f", "-")
	command.Stdin = strings.NewReader(manifests)
	_, err := output(command)
	return err
}

// output runs a command.
func output(command *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(command.Args, " "), err, tail(stderr.String()))
	}
	return stdout.String(), nil
}

// Close stops everything and removes all files. It can be called more than
// once.
func (c *Cluster) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	nodes, lab := slices.Clone(c.nodes), c.lab
	c.mu.Unlock()
	began := time.Now()
	for _, n := range nodes {
		n.Kill()
	}
	var err error
	if lab != nil {
		err = lab.Close()
	}
	c.starter.Stop()
	stopped := time.Since(began)
	err = errors.Join(err, c.keeper.Release())
	c.progress(fmt.Sprintf("all is stopped (%.1f s) and removed (%.1f s)", stopped.Seconds(), time.Since(began).Seconds()))
	return err
}
