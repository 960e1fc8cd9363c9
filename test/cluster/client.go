// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// ClientImage is an image with Nix, for pods that build.
type ClientImage struct {
	// Version of Nix; [nixlab.Newest] by default.
	Version nixlab.Version
	// SSH leaves the SSH client in the image. Without it, a build that works
	// has used none.
	SSH bool
}

// Name is the image's name and tag.
func (i ClientImage) Name() string {
	kind := "nix"
	if i.SSH {
		kind = "nix-with-ssh"
	}
	return "localhost/" + kind + ":" + string(i.version())
}

func (i ClientImage) version() nixlab.Version {
	if i.Version == "" {
		return nixlab.Newest
	}
	return i.Version
}

// packages is what the image has for <nixpkgs>: "hello", with two
// dependencies, made by nothing but /bin/sh.
//
//go:embed packages.nix
var packages string

// sshPrograms are what an image without SSH lacks.
var sshPrograms = regexp.MustCompile(`^usr/(bin/(ssh|ssh-.*|scp|sftp|slogin)|s?bin/sshd|lib/openssh)$|^etc/ssh$`)

// AddClientImage makes an image with Nix and gives it to all nodes. Its
// programs are those of a [nixlab.Client]. NIX_PATH has a <nixpkgs> with a
// "hello" whose builds need nothing from outside. Besides root there is a user
// with the number 1000, whose home is /home/user.
func (c *Cluster) AddClientImage(ctx context.Context, image ClientImage) error {
	roots, err := nixlab.PrepareRootFS(ctx, c.progress, image.version())
	if err != nil {
		return err
	}
	users, err := os.ReadFile(filepath.Join(roots[0].Dir, "etc", "passwd"))
	if err != nil {
		return err
	}
	archive := filepath.Join(c.dir, filepath.Base(image.Name())+".tar")
	config := imageConfig{
		Cmd: []string{"/bin/bash"},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NIX_PATH=nixpkgs=/nixpkgs"},
	}
	if err := writeImage(archive, image.Name(), config, func(l *layer) error {
		skip := func(name string) bool {
			return slices.Contains([]string{"etc/nix/nix.conf", "etc/nsswitch.conf", "etc/passwd", "nix-version", "dev", "proc", "sys"}, name) || !image.SSH && sshPrograms.MatchString(name)
		}
		if err := l.tree(roots[0].Dir, skip); err != nil {
			return err
		}
		files := map[string]string{
			"nixpkgs/default.nix": packages,
			// No cache is within reach, and a container cannot make the sandbox.
			"etc/nix/nix.conf": "substituters =\nsandbox = false\nbuild-users-group =\n",
			// Hosts of the lab know each other by address.
			"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
		}
		// Nix asks who it is, and wants a home of that user's.
		files["etc/passwd"] = string(users) + "user:x:1000:1000::/home/user:/bin/bash\n"
		if err := l.directory("home/user", 1000); err != nil {
			return err
		}
		for name, text := range files {
			if err := l.data(name, 0o644, []byte(text)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return c.AddImage(ctx, archive)
}

// AddImage gives an archived image to all nodes, also to those that join
// later. The archive has to stay.
func (c *Cluster) AddImage(ctx context.Context, archive string) error {
	c.mu.Lock()
	c.images = append(slices.Clone(c.images), archive)
	nodes := slices.Clone(c.nodes)
	c.mu.Unlock()
	for _, n := range nodes {
		if n.pid() == 0 {
			continue
		}
		if err := n.importAll(ctx, []string{archive}); err != nil {
			return fmt.Errorf("image %s: %w", archive, err)
		}
	}
	return nil
}
