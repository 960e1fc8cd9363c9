// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"os"
	"path/filepath"
	"strings"
)

// groupDirectories returns where a control group of this process lies, in
// every hierarchy.
func groupDirectories(group string) []string {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	own := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			own[strings.TrimPrefix(parts[1], "name=")] = parts[2]
		}
	}
	var directories []string
	for _, hierarchy := range hierarchies {
		directories = append(directories, filepath.Join("/sys/fs/cgroup", hierarchy, own[hierarchy], group))
	}
	return directories
}
