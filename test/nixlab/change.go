// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"context"
	"fmt"
)

// Changes to a host that is up. All but those below /nix are gone when it goes down.

// ProfileBin is where [Host.MoveNix] leaves the programs of Nix, as its installers do.
const ProfileBin = "/nix/var/nix/profiles/default/bin"

// LoginShells are those that a host has, besides bash; "ash" is Busybox's.
func LoginShells() []string { return []string{"dash", "zsh", "fish", "tcsh", "ash"} }

// SetLoginShell gives a user another login shell: the name or path of a program of
// the host, or a path where there is none.
func (h *Host) SetLoginShell(ctx context.Context, user, shell string) error {
	_, err := h.Exec(ctx, "sh", "-c", `shell=$(command -v "$2" || echo "$2") && sed -i "s|^\($1:.*\):[^:]*\$|\1:$shell|" /etc/passwd`, "sh", user, shell)
	return err
}

// MoveNix moves the programs of Nix to where its installers put them: into a profile
// that only login shells have on their PATH.
func (h *Host) MoveNix(ctx context.Context) error {
	_, err := h.Exec(ctx, "sh", "-ec", "mkdir -p /nix/opt /nix/var/nix/profiles/default; mv /usr/bin/nix /usr/bin/nix-* /nix/opt; ln -s /nix/opt "+ProfileBin)
	return err
}

// RestartDaemon ends nix-daemon, where it runs, and starts it with its configuration
// as it is now.
func (b *Builder) RestartDaemon(ctx context.Context) error {
	if err := b.KillDaemon(); err != nil {
		return err
	}
	_, err := b.Exec(ctx, "bash", "/lab-daemon")
	return err
}

// Reinstall boots the host anew with another version of Nix. Its store, address and
// keys stay.
func (h *Host) Reinstall(ctx context.Context, version Version) error {
	root, err := h.lab.rootFS(ctx, version)
	if err != nil {
		return fmt.Errorf("reinstall %s: %w", h.name, err)
	}
	h.Kill()
	h.mu.Lock()
	h.root = root
	h.mu.Unlock()
	return h.start(ctx)
}
