// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package version says which build of the project is running.
package version

import (
	"runtime/debug"
)

// version is set by the linker: -X <this package>.version=v1.2.3.
var version string

// String returns the version of this build: the one that it was stamped with,
// else that of its module, else the commit that it was built from, else
// "unknown".
func String() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return fromBuildInfo(info)
}

func fromBuildInfo(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var commit, modified string
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			commit = setting.Value
		case "vcs.modified":
			if setting.Value == "true" {
				modified = "-modified"
			}
		}
	}
	if commit == "" {
		return "unknown"
	}
	const shortCommit = 12
	return commit[:min(len(commit), shortCommit)] + modified
}
