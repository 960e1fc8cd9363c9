// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"

	"nixbuilder.io/nix-builder-operator/test/cluster"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// hold runs the cluster until it is told to stop.
func hold(ctx context.Context, args []string) (err error) {
	opts, err := parse(args)
	if err != nil {
		return err
	}
	s := state{Holder: os.Getpid()}
	running, err := start(ctx, opts, &s)
	if running != nil {
		defer func() {
			if closed := running.Close(); err == nil {
				err = closed
			}
		}()
	}
	if err != nil {
		s.Problem = err.Error()
		_ = s.write() // the log says it as well
		return err
	}
	more := make(chan os.Signal, 1)
	signal.Notify(more, syscall.SIGUSR1)
	for s.Nodes = 1; ; {
		if err := s.write(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-more:
			if _, err := running.AddNode(ctx); err != nil {
				s.Problem = fmt.Sprintf("node %d: %v", s.Nodes+1, err)
			} else {
				s.Nodes++
			}
		}
	}
}

// start makes all that there is to try things with.
func start(ctx context.Context, opts options, s *state) (*cluster.Cluster, error) {
	began := time.Now()
	parts, err := cluster.FindParts(opts.source)
	if err != nil {
		return nil, err
	}
	settings := cluster.Options{Parts: parts, Progress: func(line string) { fmt.Fprintln(os.Stderr, line) }}
	if opts.image != "" {
		image, err := filepath.Abs(opts.image)
		if err != nil {
			return nil, err
		}
		settings.Images = []string{image}
	}
	running, err := cluster.Start(ctx, settings)
	if err != nil {
		return nil, err
	}
	images := []cluster.ClientImage{{}, {SSH: true}}
	for _, image := range images {
		if err := running.AddClientImage(ctx, image); err != nil {
			return running, err
		}
	}
	var builders []*cluster.Builder
	for name, version := range map[string]nixlab.Version{"b1": nixlab.Nix226, "b2": nixlab.Newest} {
		builder, err := running.StartBuilder(ctx, nixlab.BuilderOptions{Name: name, Version: version})
		if err != nil {
			return running, err
		}
		builders = append(builders, builder)
	}
	manifests := filepath.Join(running.Dir(), "builders.yaml")
	if err := writeManifests(running, manifests, builders); err != nil {
		return running, err
	}
	command := running.Node(1).Command(ctx)
	for _, word := range command.Args {
		if !strings.HasPrefix(word, "--wdns") {
			s.Enter = append(s.Enter, word)
		}
	}
	path := os.Getenv("PATH")
	if opts.path != "" {
		path = opts.path + ":" + path
	}
	s.Environment = []string{
		"KUBECONFIG=" + running.Kubeconfig(), "PATH=" + parts.Kubernetes + ":" + parts.Node + ":" + path,
		"BUILDERS=" + manifests, `PS1=[cluster] \w \$ `, "CONTAINERD_NAMESPACE=k8s.io",
	}
	s.Greeting = fmt.Sprintf(`The cluster is up (%.0f s). Enter it with make cluster-shell, end it with make cluster-down.
Images with Nix: %s (without ssh), %s
Builders: b1.builders.test, b2.builders.test; $BUILDERS is their manifest, with the key.
`, time.Since(began).Seconds(), images[0].Name(), images[1].Name())
	return running, nil
}

//go:embed builders.yaml
var manifestTemplate string

// writeManifests writes the objects that make the builders usable in a
// namespace: their key, and a NixBuilder for each.
func writeManifests(running *cluster.Cluster, path string, builders []*cluster.Builder) error {
	lab, err := running.Lab()
	if err != nil {
		return err
	}
	key, err := os.ReadFile(lab.ClientKeyFile())
	if err != nil {
		return err
	}
	parsed, err := template.New("builders").Parse(manifestTemplate)
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := parsed.Execute(&text, map[string]any{
		"Key": strings.Split(strings.TrimSpace(string(key)), "\n"), "User": nixlab.TrustedUser,
		"System": nixlab.System(), "Builders": builders,
	}); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text.String()), 0o600)
}
