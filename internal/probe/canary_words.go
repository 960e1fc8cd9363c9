// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"fmt"
	"regexp"
	"strings"
)

// canaryVerdict is what a canary showed about a system.
type canaryVerdict struct {
	system string
	// status is True where the build ran, False where the builder says that it
	// cannot be done, and Unknown where nothing was shown.
	status Status
	cause  canaryCause
	// text is in the builder's words, or in ours where it is inconclusive.
	text string
	// offers are the features that a daemon has which refuses a build for them.
	offers string
	// said is the whole message about it, where that is all that was kept.
	said string
}

// canaryCause is why a builder cannot do even the smallest build.
type canaryCause string

// The causes that can be told apart by the builder's words.
const (
	causeOther     canaryCause = ""
	causeSystem    canaryCause = "system"
	causeEmulation canaryCause = "emulation"
	causeJobs      canaryCause = "jobs"
	causeUsers     canaryCause = "users"
	causeDisk      canaryCause = "disk"
	causeSandbox   canaryCause = "sandbox"
)

func inconclusive(system, text string) canaryVerdict {
	return canaryVerdict{system: system, status: StatusUnknown, text: text}
}

// canarySayings lists words of Nix for each cause. The first match counts.
func canarySayings() []struct {
	cause canaryCause
	words []string
} {
	return []struct {
		cause canaryCause
		words []string
	}{
		{causeSystem, []string{"platform mismatch", "is required to build", "required system", "missing system features"}},
		{causeEmulation, []string{"exec format error", "bad cpu type"}},
		{causeJobs, []string{"unable to start any build", "max-jobs"}},
		{causeUsers, []string{"build users group", "build-users-group", "build user"}},
		{causeDisk, []string{
			"no space left", "disk is full", "disk full", "free disk space", "read-only file system", "disk quota",
			fmt.Sprintf("exit code %d", canaryNoOutput), fmt.Sprintf("exit code %d", canaryNoWriting),
		}},
		{causeSandbox, []string{"sandbox", "namespace", "unshare", "mounting", "chroot", "pivot", "cgroup"}},
	}
}

// transientSayings lists refusals that say nothing about what the builder can do.
func transientSayings() []string {
	return []string{
		"not privileged", "interrupted", "currently in use", "resource temporarily unavailable",
		"cannot allocate memory", "connection reset", "broken pipe",
	}
}

// judge finds out what the builder's words mean. program is what was to be executed.
func judge(system, program, message string) canaryVerdict {
	said := strings.ToLower(withoutColours(message))
	verdict := canaryVerdict{system: system, status: StatusFalse, text: plainWords(message)}
	if i := strings.Index(verdict.text, "executing '"); i >= 0 {
		// What was to be the build and Nix itself write the line before at the same
		// time, and each time it is another mixture.
		verdict.text = verdict.text[i:]
	}
	for _, words := range transientSayings() {
		if strings.Contains(said, words) {
			return inconclusive(system, quoted(verdict.text, "nothing"))
		}
	}
	if strings.Contains(said, "executing '"+program+"'") && strings.Contains(said, "no such file or directory") {
		if program == "/bin/sh" {
			return inconclusive(system, "there is no /bin/sh for builds")
		}
		// The program is there: what is missing is the interpreter that the kernel
		// was told to run it with, outside of the sandbox.
		verdict.cause = causeEmulation
		return verdict
	}
	for _, saying := range canarySayings() {
		for _, words := range saying.words {
			if strings.Contains(said, words) {
				verdict.cause = saying.cause
				return verdict
			}
		}
	}
	return verdict
}

// plainWords picks what tells most of a message of several lines: the last line of
// the build's log, else the reason, else the last error, else the first line that does
// not only say where an error was met.
func plainWords(message string) string {
	message = hashes().ReplaceAllString(withoutColours(message), "")
	first, failure, reason, logged := "", "", "", ""
	for line := range strings.Lines(message) {
		line = strings.TrimSpace(line)
		text, isLog := strings.CutPrefix(line, "> ")
		text, isError := strings.CutPrefix(text, "error:")
		text = strings.TrimSpace(text)
		switch {
		case text == "":
		case isLog:
			logged = text
		case isError:
			failure = text
		case first == "" && !strings.HasPrefix(text, "…"):
			first = text
		}
		if text, ok := strings.CutPrefix(line, "Reason:"); ok {
			reason = strings.TrimSpace(text)
		}
	}
	for _, text := range []string{logged, reason, failure} {
		if text != "" {
			return text
		}
	}
	return first
}

func withoutColours(text string) string { return colours().ReplaceAllString(text, "") }

// hashes matches what makes store paths long.
func hashes() *regexp.Regexp { return regexp.MustCompile(`/nix/store/[0-9a-z]{32}-`) }

// messageCanary tells which systems could not be built for, why, and what to do.
// The first of the verdicts given explains all.
func messageCanary(t *Target, failed []canaryVerdict) string {
	names := make([]string, len(failed))
	for i, verdict := range failed {
		names[i] = verdict.system
	}
	first, systems := failed[0], strings.Join(names, ", ")
	if first.said != "" {
		return first.said
	}
	if first.status == StatusUnknown {
		return t.says("a tiny build for %s showed nothing: %s", systems, first.text)
	}
	return t.says("a tiny build for %s fails (%s): %s", systems, quoted(first.text, "without a word"), remedy(first.cause))
}

// messageRefutedBefore is for what was refuted before a restart, where why is not known.
func messageRefutedBefore(t *Target, refuted []string) string {
	return t.says("a tiny build for %s failed before the operator was restarted, and none has shown anything since; look at the log of nix-daemon, and try one on the machine",
		strings.Join(refuted, ", "))
}

// remedy says what to do about a cause.
func remedy(cause canaryCause) string {
	switch cause {
	case causeSystem:
		return "the Nix daemon does not build for that system; correct spec.systems, or add it to extra-platforms in nix.conf there"
	case causeEmulation:
		return "the machine cannot run programs of that system, though its nix.conf lists it; set up emulation that works in the sandbox " +
			"(QEMU in binfmt_misc with flag F; NixOS: boot.binfmt.emulatedSystems; macOS: Rosetta), or leave it out of spec.systems"
	case causeJobs:
		return "set max-jobs in nix.conf there to more than 0"
	case causeUsers:
		return "make the group of build-users-group in nix.conf there, with users as its members, and restart nix-daemon"
	case causeDisk:
		return "the store or the directory for builds cannot be written to; free space there (nix-collect-garbage), and look at its file system"
	case causeSandbox:
		return "sandboxed builds do not work there; look at sandbox and sandbox-paths in its nix.conf, at the kernel's user namespaces, and at the log of nix-daemon"
	default:
		return "no build works there; look at the log of nix-daemon, and try one on the machine"
	}
}
