// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package version

import (
	"runtime/debug"
	"testing"
)

func TestFromBuildInfo(t *testing.T) {
	t.Parallel()
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}
	tests := map[string]struct {
		info debug.BuildInfo
		want string
	}{
		"module version": {
			info: debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: []debug.BuildSetting{commit}},
			want: "v1.2.3",
		},
		"commit of a working copy": {
			info: debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{commit}},
			want: "0123456789ab",
		},
		"commit with changes": {
			info: debug.BuildInfo{Settings: []debug.BuildSetting{commit, {Key: "vcs.modified", Value: "true"}}},
			want: "0123456789ab-modified",
		},
		"short commit": {
			info: debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "0123"}}},
			want: "0123",
		},
		"nothing known": {want: "unknown"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := fromBuildInfo(&tc.info); got != tc.want {
				t.Errorf("fromBuildInfo() = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestStringIsNeverEmpty(t *testing.T) {
	t.Parallel()
	if String() == "" {
		t.Error("String() is empty")
	}
}
