// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// nixFault is a way in which nix-daemon does not answer, and what is to be said of it.
// The texts are those that real shells and Nix versions print.
type nixFault struct {
	exec       sshtest.Exec
	program    string
	slow       bool
	wantReason Reason
	wantWords  []string
}

func (f nixFault) meet(t *testing.T) {
	t.Parallel()
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: f.exec}))
	target.RemoteProgram = f.program
	if f.slow {
		target.Timeout = shortTimeout
	}
	result, _ := probeOnce(t, target)
	expectFailure(t, result, StepNixAvailable, f.wantReason, f.wantWords...)
}

// TestDaemonFaults: nix-daemon starts, and does not do what it should.
func TestDaemonFaults(t *testing.T) {
	t.Parallel()
	tests := map[string]nixFault{
		"something else": {
			exec: func(_ string, stdio sshtest.Stdio) int {
				_, _ = stdio.Stdout.Write(make([]byte, 100))
				return 0
			},
			wantReason: ReasonNotNixProtocol,
		}, "garbage after the magic": {
			exec: func(command string, stdio sshtest.Stdio) int {
				_, _ = stdio.Stdout.Write(words(magic, 0x123, 1<<60))
				return hang(command, stdio)
			},
			wantReason: ReasonNotNixProtocol,
		}, "truncated": {
			exec: func(_ string, stdio sshtest.Stdio) int {
				_, _ = stdio.Stdout.Write(words(magic, 0x123))
				return 0
			},
			wantReason: ReasonDaemonHungUp,
		}, "error instead of the handshake": {
			exec: func(command string, stdio sshtest.Stdio) int {
				_, _ = stdio.Stdout.Write(words(magic, 0x123, 0, 0, 0x63787470, 0, 0, 0, 3, 0x6f6f66, 0, 0))
				return hang(command, stdio)
			},
			wantReason: ReasonDaemonRefused, wantWords: []string{"\"foo\""},
		}, "daemon not running": {
			exec:       fail(1, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused\n"),
			wantReason: ReasonDaemonNotRunning, wantWords: []string{"start it"},
		},
		"daemon not running, colours": {
			exec:       fail(1, "\x1b[31;1merror:\x1b[0m cannot connect to socket at '\x1b[35;1m/s\x1b[0m': No such file or directory\n"),
			wantReason: ReasonDaemonNotRunning, wantWords: []string{"\"cannot connect to socket at '/s': No such file or directory\""},
		},
		"daemon not running, outer process answers": {
			exec: func(_ string, stdio sshtest.Stdio) int {
				_, _ = stdio.Stdout.Write(words(magic, 0x126))
				_, _ = io.WriteString(stdio.Stderr, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': No such file or directory\n")
				return 1
			},
			wantReason: ReasonDaemonNotRunning,
		},
		"Lix": {
			exec:       fail(1, "error: could not connect to any lix socket (tried …)\n"),
			wantReason: ReasonDaemonNotRunning,
		},
		"socket not allowed": {
			exec:       fail(1, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Permission denied\n"),
			wantReason: ReasonDaemonDenied, wantWords: []string{"allowed-users", "daemon-socket"},
		},
		"single-user installation of somebody else": {
			exec:       fail(1, "error: creating directory '/nix/store': Permission denied\n"),
			wantReason: ReasonDaemonDenied,
		},
		"not in allowed-users": {
			exec:       fail(1, "error: splicing data from daemon socket to stdout: Connection reset by peer\n"),
			wantReason: ReasonDaemonHungUp, wantWords: []string{"allowed-users"},
		},
		"not in allowed-users, newer": {
			exec:       fail(1, "error: unexpected end-of-file\n"),
			wantReason: ReasonDaemonHungUp,
		},
		"settings that Nix cannot read": {
			exec:       fail(1, "error: syntax error in configuration line 'trusted-users' in '/etc/nix/nix.conf'\nTry 'nix-daemon --help' for more information.\n"),
			wantReason: ReasonDaemonExited, wantWords: []string{"cannot read its settings", "correct /etc/nix/nix.conf there"},
		},
		"the same, 2.8, those of the user": {
			exec:       fail(1, "error: illegal configuration line 'foo bar' in '/home/nixt/.config/nix/nix.conf'\n"),
			wantReason: ReasonDaemonExited, wantWords: []string{"correct /home/nixt/.config/nix/nix.conf there"},
		},
		"a long line in it": {
			exec:       fail(1, "error: syntax error in configuration line '"+strings.Repeat("x", 300)+"' in '/etc/nix/nix.conf'\n"),
			wantReason: ReasonDaemonExited, wantWords: []string{"correct /etc/nix/nix.conf there"},
		},
		"killed": {
			exec:       func(string, sshtest.Stdio) int { return sshtest.KilledBySignal },
			wantReason: ReasonDaemonExited, wantWords: []string{"killed by SIGKILL"},
		},
		"stopped": {exec: hang, slow: true, wantReason: ReasonDaemonNotAnswering, wantWords: []string{"startup files of nixt's shell hang", "stopped or overloaded"}},
		"stopped, outer process answers": {
			exec: func(command string, stdio sshtest.Stdio) int {
				_, _ = stdio.Stdout.Write(words(magic, 0x126))
				return hang(command, stdio)
			},
			slow: true, wantReason: ReasonDaemonNotAnswering, wantWords: []string{"nix-daemon starts, but"},
		},
	}
	for name, tc := range tests {
		t.Run(name, tc.meet)
	}
}

// TestNixDaemonSaysNothing: from 2.20 on nix-daemon --stdio answers and then ends
// without a word where it cannot reach the daemon, and where the socket is gone it
// tries to be the daemon. What an ordinary client says explains it. The texts are those of
// Nix 2.8, 2.26 and 2.34.
func TestNixDaemonSaysNothing(t *testing.T) {
	t.Parallel()
	silent := func(_ string, stdio sshtest.Stdio) int {
		_, _ = stdio.Stdout.Write(words(magic, 0x126))
		return 1
	}
	tests := map[string]struct {
		daemon, client sshtest.Exec
		wantReason     Reason
		wantWords      []string
	}{
		"not running": {
			silent, fail(1, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused\n"),
			ReasonDaemonNotRunning, []string{"cannot connect to socket"},
		},
		"not allowed": {
			silent, fail(1, "error: cannot open connection to remote store 'daemon': error: write of 16 bytes: Broken pipe\n"),
			ReasonDaemonHungUp, []string{"allowed-users"},
		},
		"no client either": {
			silent, fail(127, "bash: line 1: nix-store: command not found\n"),
			ReasonDaemonExited, []string{"exit status 1", "nothing"},
		},
		"client works": {
			silent, fail(1, "error: path '/nix/store/00000000000000000000000000000000-probe' is not valid\n"),
			ReasonDaemonExited, nil,
		},
		"client hangs": {silent, hang, ReasonDaemonExited, nil},
		"no socket, 2.8": {
			fail(1, "error: could not set permissions on '/nix/var/nix/profiles/per-user' to 755: Operation not permitted\n"),
			fail(1, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': No such file or directory\n"),
			ReasonDaemonNotRunning, nil,
		},
		"no socket, 2.34": {
			fail(1, "error:\n       … This command may have been run as non-root in a single-user Nix installation,\n"+
				"       or the Nix daemon may have crashed.\n\n       error: opening lock file \"/nix/var/nix/db/big-lock\": Permission denied\n"),
			fail(1, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': No such file or directory\n"),
			ReasonDaemonNotRunning, nil,
		},
		"single-user installation of somebody else": {
			fail(1, "error:\n       … This command may have been run as non-root in a single-user Nix installation,\n"+
				"       or the Nix daemon may have crashed.\n\n       error: opening lock file \"/nix/var/nix/db/big-lock\": Permission denied\n"),
			fail(127, ""),
			ReasonDaemonDenied, []string{"opening lock file"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nix := newNix(t, daemontest.Options{})
			nix.commands["nix-daemon"], nix.commands["nix-store --store daemon"] = tc.daemon, tc.client
			result, _ := probeOnce(t, targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: nix.exec})))
			expectFailure(t, result, StepNixAvailable, tc.wantReason, tc.wantWords...)
		})
	}
}

// magic is what a daemon's handshake begins with.
const magic = 0x6478696f

// words encodes numbers as the protocol does.
func words(numbers ...uint64) []byte {
	var out []byte
	for _, n := range numbers {
		out = binary.LittleEndian.AppendUint64(out, n)
	}
	return out
}

// TestConnectionLostWhileAsking cuts the connection under the handshake.
func TestConnectionLostWhileAsking(t *testing.T) {
	t.Parallel()
	var server *sshtest.Server
	started := make(chan struct{})
	server = sshtest.New(t, sshtest.Behavior{Exec: func(string, sshtest.Stdio) int {
		<-started
		server.CloseConnections()
		return 0
	}})
	close(started)
	result, _ := probeOnce(t, targetFor(t, server))
	expectFailure(t, result, StepNixAvailable, ReasonConnectionLost)
}

func TestVersionsAndTrust(t *testing.T) {
	t.Parallel()
	const old, feature = daemon.OldestProtocol, daemon.Version(0x126)
	tests := map[string]struct {
		opts       daemontest.Options
		wantReason Reason // of the failure, if any
		wantStep   Step
		wantTrust  Trust
		wantOps    []daemon.Operation
	}{
		"1.35 trusted":   {opts: daemontest.Options{Trust: daemon.Trusted}, wantTrust: Trusted},
		"1.38 trusted":   {opts: daemontest.Options{Version: feature, Trust: daemon.Trusted}, wantTrust: Trusted},
		"1.35 untrusted": {opts: daemontest.Options{Trust: daemon.NotTrusted}, wantTrust: NotTrusted, wantStep: StepTrusted, wantReason: ReasonUserNotTrusted},
		"1.34 trusted": {
			opts: daemontest.Options{Version: old, Trust: daemon.Trusted}, wantTrust: Trusted,
			wantOps: []daemon.Operation{daemon.OpBuildPaths},
		},
		"1.34 untrusted": {
			opts: daemontest.Options{Version: old, Trust: daemon.NotTrusted}, wantTrust: NotTrusted,
			wantStep: StepTrusted, wantReason: ReasonUserNotTrusted,
			wantOps: []daemon.Operation{daemon.OpBuildPaths},
		},
		"1.33": {
			opts:     daemontest.Options{Version: 0x121, Trust: daemon.Trusted},
			wantStep: StepNixAvailable, wantReason: ReasonVersionTooOld,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nix := newNix(t, tc.opts)
			result, _ := probeOnce(t, targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: nix.exec})))
			if tc.wantReason != "" {
				expectFailure(t, result, tc.wantStep, tc.wantReason)
			} else if failure, failed := result.Failure(); failed {
				t.Errorf("failed: %+v", failure)
			}
			if result.Facts.Trust != tc.wantTrust {
				t.Errorf("trust is %q, want %q", result.Facts.Trust, tc.wantTrust)
			}
			if got := nix.daemon.Operations(); !slices.Equal(got, tc.wantOps) {
				t.Errorf("operations %v, want %v", got, tc.wantOps)
			}
		})
	}
}

// TestTrustCannotBeTold: an old daemon that answers the question with something else
// leaves it open, which blocks nothing.
func TestTrustCannotBeTold(t *testing.T) {
	t.Parallel()
	tests := map[string]func(nix *nix) sshtest.Exec{
		"another error": func(nix *nix) sshtest.Exec { return nix.exec },
		"no second session": func(nix *nix) sshtest.Exec {
			sessions := make(chan struct{}, 1)
			sessions <- struct{}{}
			return func(command string, stdio sshtest.Stdio) int {
				select {
				case <-sessions:
					return nix.exec(command, stdio)
				default:
					return 1
				}
			}
		},
	}
	for name, exec := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nix := newNix(t, daemontest.Options{
				Version: daemon.OldestProtocol, Before: daemontest.At(1, daemontest.Refuse("disk full")),
			})
			result, _ := probeOnce(t, targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: exec(nix)})))
			if got := result.Outcome(StepTrusted); got.Status != StatusUnknown || got.Reason != ReasonTrustUnknown {
				t.Errorf("got %+v", got)
			}
			if failure, failed := result.Failure(); failed {
				t.Errorf("failed: %+v", failure)
			}
		})
	}
}

// TestUntrustedMessage: the line to add is there to be copied.
func TestUntrustedMessage(t *testing.T) {
	t.Parallel()
	nix := newNix(t, daemontest.Options{Trust: daemon.NotTrusted})
	result, _ := probeOnce(t, targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: nix.exec})))
	expectFailure(t, result, StepTrusted, ReasonUserNotTrusted, "\"extra-trusted-users = nixt\"", "nix.settings.trusted-users", "restart nix-daemon", "/etc/nix/nix.conf")
}

func TestRemoteProgram(t *testing.T) {
	t.Parallel()
	nix := newNix(t, daemontest.Options{})
	commands := make(chan string, 10)
	server := sshtest.New(t, sshtest.Behavior{Exec: func(command string, stdio sshtest.Stdio) int {
		commands <- command
		return nix.exec(command, stdio)
	}})
	target := targetFor(t, server)
	target.RemoteProgram = "/opt/nix/bin/nix-daemon"
	result, _ := probeOnce(t, target)
	if failure, failed := result.Failure(); failed {
		t.Errorf("failed: %+v", failure)
	}
	close(commands)
	var got []string
	for command := range commands {
		got = append(got, command)
	}
	want := []string{
		"/opt/nix/bin/nix-daemon --stdio",
		"/opt/nix/bin/nix-store --version --verbose",
		"/opt/nix/bin/nix --extra-experimental-features nix-command config show --json",
	}
	if !slices.Equal(got, want) {
		t.Errorf("ran %q, want %q", got, want)
	}
}

func TestShellWord(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"/nix/var/nix-2.8+x/bin/nix-daemon": "/nix/var/nix-2.8+x/bin/nix-daemon",
		"/a b/nix-daemon":                   "'/a b/nix-daemon'",
		"/a'; rm -rf /; '":                  `'/a'\''; rm -rf /; '\'''`,
		"$HOME":                             "'$HOME'",
	}
	for in, want := range tests {
		if got := shellWord(in); got != want {
			t.Errorf("%q becomes %s, want %s", in, got, want)
		}
	}
}

func TestStoppedIsNoticedInTime(t *testing.T) {
	t.Parallel()
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: hang}))
	target.Timeout = shortTimeout
	began := time.Now()
	_, _ = probeOnce(t, target)
	if took := time.Since(began); took > shortTimeout+exitPatience {
		t.Errorf("took %v", took)
	}
}
