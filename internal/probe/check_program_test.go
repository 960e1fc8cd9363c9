// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// TestProgramFaults: nix-daemon is not there, or something stands before it.
func TestProgramFaults(t *testing.T) {
	t.Parallel()
	tests := map[string]nixFault{
		"bash": {
			exec:       fail(127, "bash: line 1: nix-daemon: command not found\n"),
			wantReason: ReasonNixNotFound, wantWords: []string{"spec.remoteProgram", "/nix/var/nix/profiles/default/bin", "PATH"},
		},
		"dash":           {exec: fail(127, "sh: 1: nix-daemon: not found\n"), wantReason: ReasonNixNotFound},
		"zsh":            {exec: fail(127, "zsh:1: command not found: nix-daemon\n"), wantReason: ReasonNixNotFound},
		"fish":           {exec: fail(127, "fish: Unknown command: nix-daemon\nfish: \nnix-daemon --stdio\n^~~~^\n"), wantReason: ReasonNixNotFound},
		"mksh":           {exec: fail(127, "sh: nix-daemon: inaccessible or not found\n"), wantReason: ReasonNixNotFound},
		"tcsh":           {exec: fail(1, "nix-daemon: Command not found.\n"), wantReason: ReasonNixNotFound},
		"tcsh in German": {exec: fail(1, "nix-daemon: Kommando nicht gefunden.\n"), wantReason: ReasonNixNotFound},
		"bash in German": {exec: fail(127, "bash: Zeile 1: nix-daemon: Kommando nicht gefunden.\n"), wantReason: ReasonNixNotFound},
		"nushell":        {exec: fail(1, "Error: nu::shell::external_command\n  × External command failed\n  help: Command `nix-daemon` not found\n"), wantReason: ReasonNixNotFound},
		"elvish":         {exec: fail(2, "Exception: exec: \"nix-daemon\": executable file not found in $PATH\n"), wantReason: ReasonNixNotFound},
		"PowerShell":     {exec: fail(1, "The term 'nix-daemon' is not recognized as a name of a cmdlet, function, script file, or executable program.\n"), wantReason: ReasonNixNotFound},
		"a library is missing": {
			exec:       fail(127, "nix-daemon: error while loading shared libraries: libnixstore.so: cannot open shared object file: No such file or directory\n"),
			wantReason: ReasonDaemonExited, wantWords: []string{"shared libraries"},
		},
		"its interpreter is missing": {
			exec: fail(127, "bash: line 1: /p: cannot execute: required file not found\n"), program: "/p", wantReason: ReasonNixNotExecutable,
		},
		"no text": {exec: fail(127, ""), wantReason: ReasonNixNotFound},
		"wrong path": {
			exec: fail(127, "bash: line 1: /opt/nix/bin/nix-daemon: No such file or directory\n"), program: "/opt/nix/bin/nix-daemon",
			wantReason: ReasonNixNotFound, wantWords: []string{"no /opt/nix/bin/nix-daemon on the machine"},
		},
		"not executable": {
			exec: fail(126, "bash: line 1: /p: Permission denied\n"), program: "/p",
			wantReason: ReasonNixNotExecutable, wantWords: []string{"/p may not be executed by nixt"},
		},
		"not executable, tcsh": {exec: fail(1, "/p: Permission denied.\n"), wantReason: ReasonNixNotExecutable},
		"nologin": {
			exec: func(_ string, stdio sshtest.Stdio) int {
				_, _ = io.WriteString(stdio.Stdout, "This account is currently not available.\n")
				return 1
			},
			wantReason: ReasonLoginDisabled, wantWords: []string{"/bin/sh"},
		},
		"false": {exec: fail(1, ""), wantReason: ReasonLoginDisabled, wantWords: []string{"without a word", "/bin/sh"}},
		"true":  {exec: fail(0, ""), wantReason: ReasonLoginDisabled, wantWords: []string{"without a word", "/bin/sh"}},
		"another program": {
			exec: fail(2, "/bin/ls: unrecognized option '--stdio'\nTry '/bin/ls --help' for more information.\n"), program: "/bin/ls",
			wantReason: ReasonNotNixProtocol, wantWords: []string{"/bin/ls is not nix-daemon", "exit status 2", "correct spec.remoteProgram"},
		},
		"nix instead of nix-daemon": {
			exec: fail(1, "error: unrecognised flag '--stdio'\nTry 'nix --help' for more information.\n"), program: "/usr/bin/nix",
			wantReason: ReasonNotNixProtocol, wantWords: []string{"/usr/bin/nix is not nix-daemon", "correct spec.remoteProgram"},
		},
		"a program that fails as it likes": {
			exec: fail(3, "boo\n"), program: "/opt/boo", wantReason: ReasonDaemonExited,
			wantWords: []string{"run \"/opt/boo --stdio\" there as nixt", "correct spec.remoteProgram"},
		},
		"git-shell": {
			exec:       fail(128, "fatal: unrecognized command 'nix-daemon --stdio'\n"),
			wantReason: ReasonLoginDisabled, wantWords: []string{"unrecognized command", "/bin/sh"},
		},
		"forced command that is choosy": {
			exec:       fail(1, "not allowed: nix-daemon --stdio\n"),
			wantReason: ReasonDaemonExited, wantWords: []string{"not allowed: nix-daemon --stdio"},
		},
		"forced command for ssh://": {
			exec:       fail(1, "error: protocol mismatch\n"),
			wantReason: ReasonNotNixProtocol, wantWords: []string{"have it run nix-daemon --stdio"},
		},
		"login shell prints": {
			exec: func(command string, stdio sshtest.Stdio) int {
				_, _ = io.WriteString(stdio.Stdout, "Welcome to builder 7\n")
				return hang(command, stdio)
			},
			wantReason: ReasonLoginShellPrints, wantWords: []string{"\"Welcome to builder 7\""},
		},
	}
	for name, tc := range tests {
		t.Run(name, tc.meet)
	}
}

// A program that ends well and says nothing may be nothing of Nix, may be all that the
// shell runs, or may be what is left of a daemon.
func TestProgramEndsInSilence(t *testing.T) {
	t.Parallel()
	const notValid = "error: path '/nix/store/00000000000000000000000000000000-probe' is not valid\n"
	tests := map[string]struct {
		program    string
		client     sshtest.Exec
		wantReason Reason
		wantWords  []string
	}{
		"the shell runs nothing":     {"", fail(0, ""), ReasonLoginDisabled, []string{"without a word"}},
		"but says why":               {"", fail(0, "go away\n"), ReasonLoginDisabled, nil},
		"nothing beside it":          {"/bin/true", fail(127, "sh: /bin/nix-store: not found\n"), ReasonNotNixProtocol, []string{"/bin/true is not nix-daemon", "exit status 0, it says nothing"}},
		"Nix beside it":              {"/usr/bin/true", fail(1, notValid), ReasonNotNixProtocol, []string{"/usr/bin/true is not nix-daemon"}},
		"something called so":        {"", fail(1, notValid), ReasonNotNixProtocol, []string{"nix-daemon does not speak"}},
		"the daemon does not listen": {"", fail(1, "error: cannot connect to socket at '/s': Connection refused\n"), ReasonDaemonNotRunning, nil},
		"nothing is known":           {"", fail(1, "error: something else\n"), ReasonDaemonHungUp, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exec := func(command string, stdio sshtest.Stdio) int {
				if strings.Contains(command, "nix-store") {
					return tc.client(command, stdio)
				}
				return 0
			}
			target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: exec}))
			target.RemoteProgram = tc.program
			result, _ := probeOnce(t, target)
			expectFailure(t, result, StepNixAvailable, tc.wantReason, tc.wantWords...)
		})
	}
}

// A program that is not where it is looked for is looked for elsewhere.
func TestProgramIsFound(t *testing.T) {
	t.Parallel()
	const there = programMark + " /run/current-system/sw/bin/nix-daemon\n"
	tests := map[string]struct {
		program   string
		found     string
		wantWords []string
	}{
		"elsewhere":            {found: there + programEnd, wantWords: []string{"set spec.remoteProgram to /run/current-system/sw/bin/nix-daemon, which is there"}},
		"nowhere":              {found: "Hello\n" + programEnd + "\n", wantWords: []string{"none of the usual places", "install Nix there"}},
		"not known":            {found: there, wantWords: []string{"often /nix/var/nix/profiles/default/bin/nix-daemon"}},
		"another than named":   {program: "/opt/nix-daemon", found: there + programEnd, wantWords: []string{"no /opt/nix-daemon on", "correct spec.remoteProgram: there is a /run/current-system/sw/bin/nix-daemon"}},
		"named, and nowhere":   {program: "/opt/nix-daemon", found: programEnd, wantWords: []string{"correct spec.remoteProgram, or install Nix there"}},
		"named, and not known": {program: "/opt/nix-daemon", wantWords: []string{"correct spec.remoteProgram"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nix := newNix(t, daemontest.Options{})
			nix.commands["/bin/sh -c "] = print(tc.found)
			nix.commands["nix-daemon"] = fail(127, "nix-daemon: not found")
			nix.commands["/opt/nix-daemon"] = fail(127, "/opt/nix-daemon: not found")
			target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: nix.exec}))
			target.RemoteProgram = tc.program
			result, _ := probeOnce(t, target)
			expectFailure(t, result, StepNixAvailable, ReasonNixNotFound, tc.wantWords...)
		})
	}
}

func TestParsePlace(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text string
		want place
	}{
		"first of two": {programMark + " /a/nix-daemon\n" + programMark + " /b/nix-daemon\n" + programEnd + "\n", place{"/a/nix-daemon", true}},
		"not ended":    {programMark + " /a/nix-daemon\n", place{}},
		"nothing":      {"", place{}},
		"cannot be put into spec": {
			programMark + " /home/my user/nix-daemon\n" + programMark + " /a;b\n" + programMark + " relative\n" +
				programMark + " /" + strings.Repeat("x", maxProgram) + "\n" + programEnd, place{"", true},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := parsePlace(tc.text); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// The command itself finds what is in the user's own profile.
func TestProgramCommand(t *testing.T) {
	t.Parallel()
	if strings.ContainsAny(programCommand, "!\\\n") || strings.Count(programCommand, "'") != 2 || len(programCommand) > 1000 {
		t.Errorf("not portable: %s", programCommand)
	}
	home := t.TempDir()
	program := filepath.Join(home, ".nix-profile", "bin", "nix-daemon")
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("sh", "-c", programCommand)
	command.Env = []string{"HOME=" + home, "USER=nobody"}
	output, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(output), programMark+" "+program+"\n") || !parsePlace(string(output)).searched {
		t.Errorf("got %s", output)
	}
}
