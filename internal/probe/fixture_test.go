// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shortTimeout is the time for each step in tests that wait for it to pass: long
// enough for a real handshake on a busy machine.
const shortTimeout = 3 * time.Second

// What a Nix of the lab prints, shortened.
const (
	versionOutput = "nix-store (Nix) 2.34.8\nSystem type: x86_64-linux\n" +
		"Additional system types: i686-linux, x86_64-v1-linux\nFeatures: gc, signed-caches\n" +
		"System configuration file: \"/etc/nix/nix.conf\"\n"
	configOutput = `{"system":{"value":"x86_64-linux"},"extra-platforms":{"value":["x86_64-v1-linux","i686-linux"]},` +
		`"system-features":{"value":["nixos-test","benchmark","big-parallel"]},` +
		`"max-jobs":{"value":4},"cores":{"value":8},"sandbox":{"value":true}}`
)

// nix is a builder's Nix as commands see it.
type nix struct {
	daemon *daemontest.Daemon
	// commands replaces what single commands do, by their beginning.
	commands map[string]sshtest.Exec
}

func newNix(tb testing.TB, opts daemontest.Options) *nix {
	tb.Helper()
	if opts.Trust == daemon.TrustUnknown {
		opts.Trust = daemon.Trusted
	}
	n := &nix{daemon: daemontest.New(opts), commands: map[string]sshtest.Exec{}}
	tb.Cleanup(n.daemon.Close)
	return n
}

// exec runs what the prober starts, as the shell of a builder does.
func (n *nix) exec(command string, stdio sshtest.Stdio) int {
	for beginning, exec := range n.commands {
		if strings.HasPrefix(command, beginning) {
			return exec(command, stdio)
		}
	}
	words := strings.Fields(command)
	program := words[0][strings.LastIndex(words[0], "/")+1:]
	switch {
	case program == "nix-daemon" && len(words) == 2 && words[1] == "--stdio":
		_ = n.daemon.Serve(duplex{stdio})
		return 0
	case program == "nix-store":
		return print(versionOutput)(command, stdio)
	case program == "nix" && strings.Contains(command, "nix-command config show --json"):
		return print(configOutput)(command, stdio)
	}
	_, _ = io.WriteString(stdio.Stderr, "bash: line 1: "+words[0]+": command not found\n")
	return 127
}

// duplex joins a command's input and output.
type duplex struct{ sshtest.Stdio }

func (d duplex) Read(p []byte) (int, error)  { return d.Stdin.Read(p) }
func (d duplex) Write(p []byte) (int, error) { return d.Stdout.Write(p) }
func (d duplex) Close() error {
	// A daemon that is done ends by returning, which closes the session.
	return nil
}

// print is a command that prints a text.
func print(text string) sshtest.Exec {
	return func(_ string, stdio sshtest.Stdio) int {
		_, _ = io.WriteString(stdio.Stdout, text)
		return 0
	}
}

// fail is a command that ends with a status and a text on standard error.
func fail(status int, text string) sshtest.Exec {
	return func(_ string, stdio sshtest.Stdio) int {
		_, _ = io.WriteString(stdio.Stderr, text)
		return status
	}
}

// hang is a command that reads its input and answers nothing.
func hang(_ string, stdio sshtest.Stdio) int {
	_, _ = io.Copy(io.Discard, stdio.Stdin)
	return 0
}

// targetFor is a good target for a server.
func targetFor(tb testing.TB, server *sshtest.Server) Target {
	tb.Helper()
	host, portText, err := net.SplitHostPort(server.Addr())
	if err != nil {
		tb.Fatal(err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		tb.Fatal(err)
	}
	key, _ := sshtest.NewKeyFile(tb)
	return Target{
		Endpoint: "mac-2", Host: host, Port: port, User: "nixt",
		HostKeys:    []string{sshconn.AuthorizedKey(server.HostKey())},
		Credentials: []Credential{{Name: "builder-key", PrivateKey: key}},
		Systems:     []string{"x86_64-linux"}, Features: []string{"big-parallel"},
		Discovery: true,
	}.withDefaults()
}

func testChecker() *checker {
	return newChecker(Options{Dial: sshconn.NewDialer(nil), MaxHandshakes: 4, Random: func() float64 { return 0.5 }})
}

// probeOnce checks a target without earlier knowledge.
func probeOnce(tb testing.TB, target Target) (Result, knowledge) {
	tb.Helper()
	return probeAgain(tb, target, knowledge{firstKey: target.PinnedHostKey})
}

func probeAgain(tb testing.TB, target Target, known knowledge) (Result, knowledge) {
	tb.Helper()
	result, known, err := testChecker().check(tb.Context(), &target, known)
	if err != nil {
		tb.Fatalf("check: %v", err)
	}
	if len(result.Outcomes) != len(Steps()) {
		tb.Errorf("%d outcomes", len(result.Outcomes))
	}
	for i, outcome := range result.Outcomes {
		if outcome.Step != Steps()[i] || outcome.Reason == "" || outcome.Message == "" || len(outcome.Message) > MaxMessage {
			tb.Errorf("outcome %d is %+v", i, outcome)
		}
		entry, ok := entryOf(outcome.Reason)
		if outcome.Reason != ReasonNotReached && (!ok || entry.Step != outcome.Step || entry.Status != outcome.Status) {
			tb.Errorf("outcome %+v is in the catalogue as %+v", outcome, entry)
		}
	}
	return result, known
}

// expectFailure checks that a probe failed at a step for a reason, that the steps
// before are true and those after unknown.
func expectFailure(tb testing.TB, result Result, step Step, reason Reason, words ...string) {
	tb.Helper()
	failure, failed := result.Failure()
	if !failed || failure.Step != step || failure.Reason != reason {
		tb.Fatalf("got %+v, want %s at %s", failure, reason, step)
	}
	tb.Logf("%s: %s", failure.Reason, failure.Message)
	seen := false
	for _, outcome := range result.Outcomes {
		switch {
		case outcome.Step == step:
			seen = true
		case seen && (outcome.Status != StatusUnknown || outcome.Reason != ReasonNotReached):
			tb.Errorf("after the failure: %+v", outcome)
		case !seen && outcome.Status == StatusFalse:
			tb.Errorf("before the failure: %+v", outcome)
		}
	}
	for _, word := range words {
		if !strings.Contains(failure.Message, word) {
			tb.Errorf("message %q lacks %q", failure.Message, word)
		}
	}
	if !strings.Contains(failure.Message, "mac-2") {
		tb.Errorf("message %q does not name the endpoint", failure.Message)
	}
}
