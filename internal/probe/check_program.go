// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// programCommand looks for nix-daemon where installers and NixOS put it, which is not
// on the PATH of every shell that runs a command. Like machineCommand it is the same
// to all login shells.
const programCommand = `/bin/sh -c 'for d in /nix/var/nix/profiles/default/bin /run/current-system/sw/bin "$HOME/.nix-profile/bin" ` +
	`"$HOME/.local/state/nix/profile/bin" "/etc/profiles/per-user/$USER/bin" /usr/bin /usr/local/bin /opt/nix/bin; do ` +
	`test -f "$d/nix-daemon" && test -x "$d/nix-daemon" && echo ` + programMark + ` "$d/nix-daemon"; done; echo ` + programEnd + `'`

// Marks of the lines that count in its output.
const (
	programMark = "nix-builder-program"
	programEnd  = "nix-builder-program-end"
)

// maxProgram is the longest path that spec.remoteProgram takes.
const maxProgram = 255

// place is where nix-daemon was found. searched tells that it was looked for.
type place struct {
	path     string
	searched bool
}

// findProgram looks for nix-daemon on the machine.
func findProgram(ctx context.Context, t *Target, conn *sshconn.Conn) place {
	return parsePlace(string(runUpTo(ctx, t, conn, programCommand, maxReport).stdout))
}

// parsePlace takes the first path that spec.remoteProgram may be set to.
func parsePlace(text string) place {
	var found place
	for line := range strings.Lines(text) {
		mark, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case mark == programEnd:
			found.searched = true
			return found
		case mark == programMark && found.path == "" && len(path) <= maxProgram && programPattern().MatchString(path):
			found.path = path
		}
	}
	return place{}
}

// programPattern is what the API accepts as spec.remoteProgram.
func programPattern() *regexp.Regexp { return regexp.MustCompile(`^/[A-Za-z0-9._/+-]+$`) }

// notFound says where nix-daemon is, if that is known.
func notFound(t *Target, f nixFailure) string {
	said := quoted(f.text, "nothing")
	if t.RemoteProgram != "" {
		advice := "correct spec.remoteProgram"
		switch {
		case f.place.path != "":
			advice += ": there is a " + f.place.path
		case f.place.searched:
			advice += ", or install Nix there: it is in none of the usual places"
		}
		return fmt.Sprintf("there is no %s on the machine (%s, it says %s); %s", t.RemoteProgram, f.status, said, advice)
	}
	missing := fmt.Sprintf("nix-daemon is not on the PATH of %s's non-interactive shell (%s, it says %s); ", t.User, f.status, said)
	switch {
	case f.place.path != "":
		return missing + fmt.Sprintf("set spec.remoteProgram to %s, which is there, or add that directory to PATH (macOS: in /etc/zshenv)", f.place.path)
	case f.place.searched:
		return missing + "it is in none of the usual places either: install Nix there, or set spec.remoteProgram to its path"
	default:
		return missing + "set spec.remoteProgram to its path, often /nix/var/nix/profiles/default/bin/nix-daemon, or add that directory to PATH (macOS: in /etc/zshenv)"
	}
}
