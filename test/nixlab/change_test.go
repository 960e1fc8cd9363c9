// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab_test

import (
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

func TestHostsChange(t *testing.T) {
	lab := newLab(t)
	builder, err := lab.StartBuilder(t.Context(), nixlab.BuilderOptions{Name: "changing", Version: nixlab.Nix28})
	if err != nil {
		t.Fatal(err)
	}
	for _, shell := range nixlab.LoginShells() {
		if err := builder.SetLoginShell(t.Context(), nixlab.TrustedUser, shell); err != nil {
			t.Fatal(err)
		}
		entry, err := builder.Exec(t.Context(), "getent", "passwd", nixlab.TrustedUser)
		if err != nil || !strings.HasSuffix(entry, "bin/"+shell+"\n") {
			t.Errorf("entry %q, %v", entry, err)
		}
		if protocol := handshake(t, lab, builder, nixlab.TrustedUser); protocol != 0x122 {
			t.Errorf("%s: protocol %#x", shell, protocol)
		}
	}
	if err := builder.MoveNix(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := builder.Exec(t.Context(), "nix-store", "--version"); err == nil {
		t.Error("Nix is still on the PATH")
	}
	if _, err := builder.Exec(t.Context(), nixlab.ProfileBin+"/nix-store", "--version"); err != nil {
		t.Error(err)
	}
	if err := builder.Reinstall(t.Context(), nixlab.Nix23); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if protocol := handshake(t, lab, builder, nixlab.TrustedUser); protocol >= 0x122 || !strings.HasPrefix(builder.Nix(), "2.3.") {
			t.Errorf("Nix %s speaks %#x", builder.Nix(), protocol)
		}
		if err := builder.RestartDaemon(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
