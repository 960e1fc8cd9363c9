// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package e2e_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"nixbuilder.io/nix-builder-operator/internal/connect"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/test/captured"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

// persona is somebody in a client's container.
type persona struct {
	name string
	// user is a user of the client; through is what commands run through.
	user    string
	through []string
}

// ordinaryUser is the user that most containers run as.
const ordinaryUser = "ci"

func personas() []persona {
	return []persona{
		{name: "root", user: "root"},
		{name: "root without capabilities", user: "root", through: []string{"setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"}},
		{name: "user 1000", user: ordinaryUser, through: []string{"setpriv", "--inh-caps=-all", "--no-new-privs"}},
	}
}

// run runs a command on the client. A command that fails is a result.
func (p persona) run(ctx context.Context, client *nixlab.Client, env []string, args ...string) nixlab.Result {
	GinkgoHelper()
	command, err := client.Command(ctx, p.user, env, append(append([]string{}, p.through...), args...)...)
	Expect(err).NotTo(HaveOccurred())
	var stdout, stderr captured.Text
	command.Stdout, command.Stderr = &stdout, &stderr
	_ = command.Run() // the status tells
	Expect(ctx.Err()).NotTo(HaveOccurred(), "%v does not end:\n%s", args, &stderr)
	return nixlab.Result{Stdout: stdout.String(), Stderr: stderr.String(), Status: command.ProcessState.ExitCode()}
}

// newPersonaClient starts a client on which Nix runs as that persona, without a
// daemon: the store belongs to it.
func newPersonaClient(ctx context.Context, d *dispatcher, p persona, opts nixlab.ClientOptions) *nixlab.Client {
	GinkgoHelper()
	client := newClient(ctx, d, opts)
	if p.user == ordinaryUser {
		_, err := client.Exec(ctx, "sh", "-c", `echo 'ci:x:1000:1000::/home/ci:/bin/bash' >>/etc/passwd
			echo 'ci:x:1000:' >>/etc/group
			mkdir -p /home/ci && chown 1000:1000 /home/ci && chown -R 1000:1000 /nix`)
		Expect(err).NotTo(HaveOccurred())
	}
	return client
}

// storeURL is the dispatcher as a store, by which every command of Nix can be sent
// its way.
func storeURL(line string) string {
	return "ssh-ng://localhost?remote-program=" + nixlab.VolumePath + "/nix-dispatch-connect&remote-store=" + line
}

// words are numbers as the worker protocol writes them.
func words(numbers ...uint64) string {
	var b []byte
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return string(b)
}

// text is a string as the worker protocol writes it.
func text(s string) string {
	return words(uint64(len(s))) + s + strings.Repeat("\x00", (8-len(s)%8)%8)
}

// greeting is all that a client says before its first request.
func greeting() string { return words(0x6e697863, uint64(daemon.Protocol), 0, 0) }

// dial connects to the dispatcher's socket without the helper and says a header, in
// which everything is a lie that an attacker can think of.
func (d *dispatcher) dial(hook uint32, line string) net.Conn {
	GinkgoHelper()
	conn, err := net.Dial("unix", filepath.Join(d.volume, connect.SocketName))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { _ = conn.Close() }) // most are closed by then
	target, err := connect.ParseTarget(line)
	Expect(err).NotTo(HaveOccurred())
	header, err := connect.Header{Target: target, Namespace: 1, Hook: connect.Process{PID: hook}}.Append(nil)
	Expect(err).NotTo(HaveOccurred())
	_, err = conn.Write(header)
	Expect(err).NotTo(HaveOccurred())
	return conn
}

// speak opens a whole session past the helper.
func (d *dispatcher) speak(ctx context.Context, hook uint32) *daemon.Client {
	GinkgoHelper()
	client, err := daemon.NewClient(ctx, d.dial(hook, plainLine()), daemon.ClientOptions{})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { _ = client.Close() }) // it may be closed
	return client
}

// plainLine is a line for builds that need no feature.
func plainLine() string { return nixlab.System() + ".0" }

// converse sends bytes and returns what comes back until the dispatcher closes the
// connection, which it has to do soon.
func converse(conn net.Conn, bytes string) string {
	GinkgoHelper()
	// A connection that is closed meanwhile says why in what it answers.
	go func() { _, _ = io.WriteString(conn, bytes) }()
	Expect(conn.SetReadDeadline(time.Now().Add(patience))).To(Succeed())
	answer, err := io.ReadAll(conn)
	if err != nil {
		Expect(errors.Is(err, os.ErrDeadlineExceeded)).To(BeFalse(), "the connection stays open; so far it said %q", answer)
	}
	return string(answer)
}

// highWater is the most memory that the dispatcher has had, in bytes.
func (d *dispatcher) highWater() int {
	GinkgoHelper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.command.Process.Pid))
	Expect(err).NotTo(HaveOccurred())
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	Expect(err).NotTo(HaveOccurred())
	return kib << 10
}

// forgetHighWater makes the most memory what it is now.
func (d *dispatcher) forgetHighWater() {
	GinkgoHelper()
	Expect(os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.command.Process.Pid), []byte("5"), 0)).To(Succeed())
}

// running tells whether the dispatcher has not ended.
func (d *dispatcher) running() bool {
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// helperConn is the helper, started on a client, as a connection.
type helperConn struct {
	io.Reader
	io.WriteCloser
}

// session is a session with the dispatcher, and the connection below it for what Nix
// would not send.
type session struct {
	*daemon.Client
	conn io.ReadWriter
}

// setOptions sends settings as Nix does to a store it trusts, and reads the answer.
func (s session) setOptions(settings ...string) {
	GinkgoHelper()
	request := words(19, 1, 1, 1, 0, 8, 1, 1, 0, 0, 0, 0, 1, uint64(len(settings)/2))
	for _, part := range settings {
		request += text(part)
	}
	_, err := io.WriteString(s.conn, request)
	Expect(err).NotTo(HaveOccurred())
	answer := make([]byte, 8)
	_, err = io.ReadFull(s.conn, answer)
	Expect(err).NotTo(HaveOccurred())
	Expect(string(answer)).To(Equal(words(0x616c7473)), "the answer is not the end of messages")
}

// connect starts the helper on a client, as Nix does, and opens a session.
func (p persona) connect(ctx context.Context, client *nixlab.Client, line string) session {
	GinkgoHelper()
	command, err := client.Command(ctx, p.user, nil, append(append([]string{}, p.through...),
		nixlab.VolumePath+"/nix-dispatch-connect", "--stdio", "--store", line)...)
	Expect(err).NotTo(HaveOccurred())
	in, err := command.StdinPipe()
	Expect(err).NotTo(HaveOccurred())
	out, err := command.StdoutPipe()
	Expect(err).NotTo(HaveOccurred())
	Expect(command.Start()).To(Succeed())
	conn := helperConn{out, in}
	opened, err := daemon.NewClient(ctx, conn, daemon.ClientOptions{})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() {
		_ = opened.Close()
		_ = command.Wait() // it ends with its input, in whichever way
	})
	return session{opened, conn}
}

// forged is a derivation that only an attacker would send: it has a path that nobody
// has computed.
func forged(name, commands string) (drvPath string, drv *daemon.BasicDerivation) {
	hash := (name + strings.Repeat("0", 32))[:32]
	hash = strings.NewReplacer("e", "3", "o", "0", "t", "7", "u", "v", "-", "1", " ", "2").Replace(hash)
	out := "/nix/store/" + hash + "-" + strings.ReplaceAll(name, " ", "-")
	return out + ".drv", &daemon.BasicDerivation{
		Outputs:  []daemon.DerivationOutput{{Name: "out", Path: out}},
		Platform: nixlab.System(),
		Builder:  "/bin/sh",
		Args:     []string{"-c", commands},
		Env:      []daemon.EnvVar{{Name: "out", Value: out}, {Name: "PATH", Value: "/usr/bin:/bin"}},
	}
}
