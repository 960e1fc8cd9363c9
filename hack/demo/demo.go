// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"nixbuilder.io/nix-builder-operator/test/envtest"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// namespace is where the demo's NixBuilders live.
const namespace = "ci"

// demo is what has been started so far.
type demo struct {
	screen *screen
	shell  *shell
	tree   string // the source tree
	dir    string // the demo's own files

	cluster    *envtest.Environment
	lab        *nixlab.Lab
	builders   []*builder
	client     *nixlab.Client
	operator   *background
	dispatcher *background

	// undo ends what was started, newest last.
	undo []undo
}

type undo struct {
	what string
	do   func() error
}

// builder is a machine of the demo and how it is described to the operator.
type builder struct {
	*nixlab.Builder
	user string
}

func (d *demo) run(ctx context.Context) error {
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"Build the programs", d.build},
		{"Start a Kubernetes API server", d.startCluster},
		{"Start three builders, each a small machine with sshd and Nix", d.startBuilders},
		{"Install the operator", d.startOperator},
		{"Describe the builders to it", d.applySamples},
		{"See what it finds", d.showStatus},
		{"Start a dispatcher, as a CI pod's sidecar would", d.startDispatcher},
		{"Build through it, where there is neither network nor ssh nor key", d.buildGraph},
		{"See who built what", d.showBuilds},
	}
	var err error
	if d.tree, err = sourceTree(); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "nix-builder-demo-"); err != nil {
		return err
	}
	d.later("its files", func() error { return os.RemoveAll(d.dir) })
	d.shell = &shell{screen: d.screen, dir: d.dir, env: os.Environ()}
	for _, step := range steps {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.screen.step(step.title)
		stop := d.screen.watch(step.title)
		err := step.do(ctx)
		stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// later has something ended when the demo is over.
func (d *demo) later(what string, do func() error) { d.undo = append(d.undo, undo{what, do}) }

// cleanUp ends everything in the reverse order.
func (d *demo) cleanUp() error {
	d.screen.step("Clean up")
	var failures []error
	for _, u := range slices.Backward(d.undo) {
		stop := d.screen.watch("ending " + u.what)
		if err := u.do(); err != nil {
			failures = append(failures, fmt.Errorf("end %s: %w", u.what, err))
		}
		stop()
	}
	d.screen.say("ended: everything that was started")
	return errors.Join(failures...)
}

// sourceTree is the directory that make runs in.
func sourceTree() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "hack", "demo")); err != nil {
		return "", errors.New("run it from the top of the source tree, best by `make demo`")
	}
	return dir, nil
}
