// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// System is the Nix name of what this machine can build.
func System() string {
	switch runtime.GOARCH {
	case "arm64":
		return "aarch64-linux"
	case "amd64":
		return "x86_64-linux"
	default:
		return runtime.GOARCH + "-linux"
	}
}

// Prerequisites says in one line what this machine lacks to run a lab; nil
// means nothing.
func Prerequisites() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("the Nix lab needs Linux, this is %s", runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		return errors.New("the Nix lab needs root: it makes namespaces and mounts")
	}
	packages := map[string]string{
		"apt-config": "apt",
		"mmdebstrap": "mmdebstrap",
		"mount":      "mount",
		"nsenter":    "util-linux",
		"unshare":    "util-linux",
	}
	var missing []string
	for _, program := range []string{"apt-config", "mmdebstrap", "mount", "nsenter", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, fmt.Sprintf("%s (package %s)", program, packages[program]))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the Nix lab needs %s", strings.Join(missing, ", "))
	}
	return nil
}
