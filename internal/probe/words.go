// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"regexp"
	"strings"
	"unicode"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Exit statuses of shells (POSIX XCU 2.8.2).
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// exitTcsh is how tcsh ends where others end with either of these.
const exitTcsh = 1

// saying maps words of shells and of Nix to a reason. The first match counts.
type saying struct {
	words  []string // all must occur, in lower case
	reason Reason
}

// nixSayings lists what programs of Nix say about their daemon.
func nixSayings() []saying {
	return []saying{
		// nix-store --serve is for ssh://, and takes our first word for a broken one.
		{[]string{"protocol mismatch"}, ReasonNotNixProtocol},
		{[]string{"cannot connect to socket", "permission denied"}, ReasonDaemonDenied},
		{[]string{"could not connect to any lix socket", "permission denied"}, ReasonDaemonDenied},
		{[]string{"cannot connect to socket"}, ReasonDaemonNotRunning},
		{[]string{"cannot connect to daemon"}, ReasonDaemonNotRunning},
		{[]string{"could not connect to any lix socket"}, ReasonDaemonNotRunning},
		{[]string{"cannot open connection to remote store"}, ReasonDaemonHungUp},
		{[]string{"splicing data"}, ReasonDaemonHungUp},
		{[]string{"unexpected eof from daemon socket"}, ReasonDaemonHungUp},
		{[]string{"disconnected unexpectedly"}, ReasonDaemonHungUp},
		{[]string{"unexpected end-of-file"}, ReasonDaemonHungUp},
		{[]string{"error:", "permission denied"}, ReasonDaemonDenied},
		{[]string{"error:", "operation not permitted"}, ReasonDaemonDenied},
	}
}

// shellSayings lists what login shells say. They are looked at after those of Nix,
// whose messages quote the same errors of the system.
func shellSayings() []saying {
	return []saying{
		{[]string{"account is currently not available"}, ReasonLoginDisabled},
		{[]string{"account has expired"}, ReasonLoginDisabled},
		{[]string{"unrecognized command"}, ReasonLoginDisabled}, // git-shell
		{[]string{"command not found"}, ReasonNixNotFound},
		{[]string{"unknown command"}, ReasonNixNotFound},
		{[]string{": not found"}, ReasonNixNotFound},
		{[]string{"executable file not found"}, ReasonNixNotFound},             // elvish
		{[]string{"command", "not found"}, ReasonNixNotFound},                  // nushell
		{[]string{"not recognized as", "name of a cmdlet"}, ReasonNixNotFound}, // PowerShell
		{[]string{"permission denied"}, ReasonNixNotExecutable},
	}
}

// endReason tells why a program ended: by its exit status, and where that is the
// same for many causes (tcsh and nologin end with 1), by its words. program is how it
// was called. It is empty where neither says anything.
func endReason(status sshconn.ExitStatus, exited bool, program, said string) Reason {
	if !exited || status.Success() {
		return ""
	}
	// Both look like a program that is missing, to those who go by the status: the
	// dynamic linker's own, and bash's for a program whose interpreter is missing.
	switch lower := strings.ToLower(said); {
	case strings.Contains(lower, "error while loading shared libraries"), strings.Contains(lower, "symbol not found"), strings.Contains(lower, "library not loaded"):
		return ReasonDaemonExited
	case strings.Contains(lower, "required file not found"), strings.Contains(lower, "bad interpreter"):
		return ReasonNixNotExecutable
	}
	switch status.Code {
	case exitNotFound:
		return ReasonNixNotFound
	case exitNotExecutable:
		return ReasonNixNotExecutable
	}
	if reason := reasonInWords(said); reason != "" {
		return reason
	}
	lower := strings.ToLower(said)
	for _, saying := range shellSayings() {
		if saying.in(lower) {
			return saying.reason
		}
	}
	if refusesOption(strings.ReplaceAll(lower, strings.ToLower(program)+" --stdio", "")) { // who quotes all of it is no such program
		return ReasonNotNixProtocol
	}
	if strings.HasPrefix(said, program+": ") && !strings.Contains(lower, "error") && status.Code == exitTcsh {
		// tcsh in another language than English. Nix itself begins with "error:".
		return ReasonNixNotFound
	}
	return ""
}

// refusesOption recognises, in lower case, what programs say that do not know --stdio,
// as nix-daemon does.
func refusesOption(lower string) bool {
	for _, words := range []string{"stdio", "illegal option", "invalid option", "unknown option"} {
		if strings.Contains(lower, words) {
			return true
		}
	}
	return false
}

// brokenSettings names the file of settings that Nix says it cannot make sense of. Only
// newer versions name it at the end, and it may be the user's own.
func brokenSettings(said string) string {
	lower := strings.ToLower(said)
	for _, words := range []string{"syntax error in configuration line", "illegal configuration line", "has invalid value", "nix.conf"} {
		if !strings.Contains(lower, words) {
			continue
		}
		if found := settingsFile().FindStringSubmatch(said); found != nil {
			return sshconn.Printable(found[1])
		}
		return "/etc/nix/nix.conf"
	}
	return ""
}

// settingsFile matches how errors of Nix name a file of settings.
func settingsFile() *regexp.Regexp { return regexp.MustCompile(`(?:in|of|at) ['"]?(/[^'" ]+\.conf)\b`) }

// reasonInWords tells what Nix says about its daemon.
func reasonInWords(said string) Reason {
	said = strings.ToLower(said)
	for _, saying := range nixSayings() {
		if saying.in(said) {
			return saying.reason
		}
	}
	return ""
}

func (s saying) in(text string) bool {
	for _, word := range s.words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

// lastWords picks the line of standard error to show: Nix's own error, or else the
// first line that is not empty.
func lastWords(stderr string) string {
	first := ""
	for line := range strings.Lines(colours().ReplaceAllString(stderr, "")) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "error:"); ok && text != "" {
			return strings.TrimSpace(text)
		}
		if first == "" {
			first = line
		}
	}
	return first
}

// colours matches the escape sequences that Nix colours its messages with.
func colours() *regexp.Regexp { return regexp.MustCompile(`\x1b\[[0-9;]*m`) }

// hasWords tells whether text says anything, or stands for bytes that do not.
func hasWords(text string) bool {
	return strings.ContainsFunc(text, unicode.IsLetter)
}
