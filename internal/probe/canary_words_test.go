// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"strings"
	"testing"
)

// TestJudge reads what Nix 2.8, 2.26 and 2.34 said.
func TestJudge(t *testing.T) {
	t.Parallel()
	const (
		red, pink, off = "\x1b[31;1m", "\x1b[35;1m", "\x1b[0m"
		drv            = pink + "/nix/store/2msvciz48znib51m3h724c0pkrrbb33z-nix-builder-canary.drv" + off
		program        = "/nix/store/3li1gkj1gkrgi7sxhca7cfcx4b24sbba-nix-builder-canary"
		executing      = red + "error:" + off + " executing '" + pink + program + off + "': " + pink
	)
	tests := map[string]struct {
		program    string // other than the usual
		message    string
		wantStatus Status // other than False
		wantCause  canaryCause
		wantText   string
	}{
		"system": {
			message:   red + "error:" + off + " a '" + pink + "aarch64-linux" + off + "' with features {} is required to build '" + drv + "', but I am a '" + pink + "x86_64-linux" + off + "'",
			wantCause: causeSystem,
			wantText:  "a 'aarch64-linux' with features {} is required to build 'nix-builder-canary.drv', but I am a 'x86_64-linux'",
		},
		"system, 2.34": {
			message:   "Cannot build '" + drv + "'.\nReason: " + red + "platform mismatch" + off + "\nRequired system: 'aarch64-linux'\nCurrent system: 'x86_64-linux'",
			wantCause: causeSystem, wantText: "platform mismatch",
		},
		"emulation": {
			message:   off + "builder for '" + drv + "' failed with exit code 1;\nlast 1 log lines:\n> " + executing + "Exec format error" + off + "\nFor full logs, run:\n  nix log x",
			wantCause: causeEmulation, wantText: "executing 'nix-builder-canary': Exec format error",
		},
		"emulation, 2.34": {
			message: "Cannot build '" + drv + "'.\nReason: " + red + "builder failed with exit code 1" + off + ".\nOutput paths:\n  /nix/store/i0y1jy9vbdgr5m29vlxb9id3fbdvgrh4-nix-builder-canary\n" +
				"Last 1 log lines:\n> " + executing + "Exec format error" + off + "\nFor full logs, run:\n",
			wantCause: causeEmulation, wantText: "executing 'nix-builder-canary': Exec format error",
		},
		"interpreter missing in the sandbox": {
			message:   "builder for '" + drv + "' failed with exit code 1;\nlast 1 log lines:\n> " + executing + "No such file or directory" + off,
			wantCause: causeEmulation, wantText: "executing 'nix-builder-canary': No such file or directory",
		},
		"no shell": {
			program: "/bin/sh", message: "builder for '" + drv + "' failed with exit code 1;\nlast 1 log lines:\n> error: executing '/bin/sh': No such file or directory",
			wantStatus: StatusUnknown, wantText: "there is no /bin/sh for builds",
		},
		"group": {
			message:   red + "error:" + off + " the group '" + pink + "nosuchgroup" + off + "' specified in 'build-users-group' does not exist",
			wantCause: causeUsers, wantText: "the group 'nosuchgroup' specified in 'build-users-group' does not exist",
		},
		"no users": {
			message: red + "error:" + off + " the build users group 'nixempty' has no members", wantCause: causeUsers,
			wantText: "the build users group 'nixempty' has no members",
		},
		"users busy": {
			message:    "error: all build users are currently in use; consider creating additional users",
			wantStatus: StatusUnknown, wantText: `"all build users are currently in use; consider creating additio…"`,
		},
		"no jobs": {
			message:   red + "error:" + off + "\n       Unable to start any build;\n       either increase '--max-jobs' or enable remote builds.\n",
			wantCause: causeJobs, wantText: "Unable to start any build;",
		},
		"no jobs, 2.34": {
			message:   "Cannot build '" + drv + "'.\nReason: " + red + "local builds are disabled" + off + " (max-jobs = 0)\n",
			wantCause: causeJobs, wantText: "local builds are disabled (max-jobs = 0)",
		},
		"with a trace": {
			message:   red + "error:" + off + "\n       … while setting up the build environment\n\n       " + red + "error:" + off + " getting attributes of path '/opt/sandbox': No such file or directory",
			wantCause: causeSandbox, wantText: "getting attributes of path '/opt/sandbox': No such file or directory",
		},
		"full": {
			message: "error: writing to file: No space left on device", wantCause: causeDisk,
			wantText: "writing to file: No space left on device",
		},
		"output cannot be made": {
			message: "builder for '" + drv + "' failed with exit code 2", wantCause: causeDisk,
			wantText: "builder for 'nix-builder-canary.drv' failed with exit code 2",
		},
		"sandbox": {
			message: "error: this system does not support the kernel namespaces that are required for sandboxing", wantCause: causeSandbox,
			wantText: "this system does not support the kernel namespaces that are required for sandboxing",
		},
		"privilege": {
			message:    "error: you are not privileged to build input-addressed derivations",
			wantStatus: StatusUnknown, wantText: `"you are not privileged to build input-addressed derivations"`,
		},
		"anything": {message: "error: oh dear", wantText: "oh dear"},
		"nothing":  {},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.program == "" {
				tc.program = program
			}
			if tc.wantStatus == "" {
				tc.wantStatus = StatusFalse
			}
			want := canaryVerdict{system: "aarch64-linux", status: tc.wantStatus, cause: tc.wantCause, text: tc.wantText}
			if got := judge("aarch64-linux", tc.program, tc.message); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// Every cause has a remedy of its own, and no text of the builder makes the message
// say more than 64 characters of it.
func TestMessageCanary(t *testing.T) {
	t.Parallel()
	target := Target{Endpoint: "mac-2", Host: "10.0.0.5", Port: 22}
	seen := map[string]bool{}
	for _, cause := range []canaryCause{causeOther, causeSystem, causeEmulation, causeJobs, causeUsers, causeDisk, causeSandbox} {
		message := messageCanary(&target, []canaryVerdict{
			{system: "aarch64-linux", status: StatusFalse, cause: cause, text: strings.Repeat("x\x07", 100)},
			{system: "i686-linux", status: StatusFalse},
		})
		if !strings.HasPrefix(message, "mac-2 (10.0.0.5:22): a tiny build for aarch64-linux, i686-linux fails (\"x x ") ||
			strings.Count(message, "x ") > 33 || len(message) > MaxMessage {
			t.Errorf("%s: %s", cause, message)
		}
		if text := remedy(cause); seen[text] || text == "" {
			t.Errorf("%s: %q", cause, text)
		} else {
			seen[text] = true
		}
	}
}

// What two processes write at the same time does not get into messages.
func TestJudgeDropsWhatVaries(t *testing.T) {
	t.Parallel()
	const end = "executing '/nix/store/1zkpshj5zj6p4npk30l4wjhvdypjl2a7-nix-builder-canary': Exec format error"
	want := judge("aarch64-linux", "x", "builder failed\n> error: "+end)
	for _, before := range []string{"Error Error s ", "error: Error: ", ""} {
		if got := judge("aarch64-linux", "x", "builder failed\n> "+before+end); got != want || got.cause != causeEmulation {
			t.Errorf("%q: got %+v, want %+v", before, got, want)
		}
	}
}
