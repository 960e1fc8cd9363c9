// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Users of every host besides root.
const (
	// TrustedUser is in trusted-users of a builder.
	TrustedUser = "nixt"
	// UntrustedUser may use the nix-daemon of a host and is not trusted.
	UntrustedUser = "nixu"
)

//go:embed scripts/host.sh
var hostScript string

// Host is one machine of the lab.
type Host struct {
	lab        *Lab
	name       string
	state      string // its directory below the lab's
	store      string // what it sees as /nix
	root       RootFS
	ownNetwork bool
	network    string

	mu      sync.Mutex
	command *exec.Cmd     // process 1 of the host; nil: down
	done    chan struct{} // closed once process 1 is gone
}

// bind is a directory of this machine that a host shows at another place.
type bind struct {
	source, target string
	readOnly       bool
}

// hostSpec is what a host is made from.
type hostSpec struct {
	name       string
	root       RootFS
	ownNetwork bool
	network    string            // path of the network namespace to be in; empty: no other
	store      string            // a directory of this machine for /nix; the lab's own if empty
	files      map[string]string // by path from the host's root; readable by root only
	public     map[string]string // likewise, readable by all
	binds      []bind
}

// startHost lays out the state of a host and boots it.
func (l *Lab) startHost(ctx context.Context, spec hostSpec) (*Host, error) {
	h := &Host{lab: l, name: spec.name, state: filepath.Join(l.dir, spec.name), store: spec.store, root: spec.root, ownNetwork: spec.ownNetwork, network: spec.network}
	if h.store == "" {
		h.store = filepath.Join(h.state, "nix")
	}
	if err := h.layOut(spec); err != nil {
		return nil, fmt.Errorf("host %s: %w", spec.name, err)
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, fmt.Errorf("host %s: the lab is closed", spec.name)
	}
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()
	return h, h.start(ctx)
}

func (h *Host) layOut(spec hostSpec) error {
	if err := os.Mkdir(h.state, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"nix", "log", "overlay", "root", "files"} {
		if err := os.Mkdir(filepath.Join(h.state, dir), 0o755); err != nil {
			return err
		}
	}
	write := func(path, text string, mode os.FileMode) error {
		full := filepath.Join(h.state, "files", path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		return os.WriteFile(full, []byte(text), mode)
	}
	for path, text := range spec.files {
		if err := write(path, text, 0o600); err != nil {
			return err
		}
	}
	for path, text := range spec.public {
		if err := write(path, text, 0o644); err != nil {
			return err
		}
	}
	var list bytes.Buffer
	for _, b := range spec.binds {
		mode := "rw"
		if b.readOnly {
			mode = "ro"
		}
		fmt.Fprintf(&list, "%s %s %s\n", b.source, b.target, mode)
	}
	return os.WriteFile(filepath.Join(h.state, "binds"), list.Bytes(), 0o644)
}

// Name is the name the host was given.
func (h *Host) Name() string { return h.name }

// Nix is the exact version of Nix on the host, such as 2.26.3.
func (h *Host) Nix() string { return h.root.Nix }

// start boots the host and waits until it says that it is up.
func (h *Host) start(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.command != nil {
		return fmt.Errorf("host %s is up already", h.name)
	}
	ready, readyWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	console, err := os.Create(filepath.Join(h.state, "log", "console.log"))
	if err != nil {
		readyWrite.Close()
		return err
	}
	defer console.Close()

	line := []string{"bash", "-c", hostScript, "host.sh", h.state, h.root.Dir, h.name, h.store}
	if h.network != "" {
		line = append([]string{"nsenter", "--net=" + h.network}, line...)
	}
	command := exec.Command(line[0], line[1:]...)
	command.Dir = "/"
	command.Stdout, command.Stderr = console, console
	command.ExtraFiles = []*os.File{readyWrite}
	flags := uintptr(syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS)
	if h.ownNetwork {
		flags |= syscall.CLONE_NEWNET
	}
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Setsid: true}
	err = h.lab.starter.Start(command)
	readyWrite.Close()
	if err != nil {
		return fmt.Errorf("start host %s: %w", h.name, err)
	}
	h.command, h.done = command, make(chan struct{})
	go func() {
		defer close(h.done)
		_ = command.Wait() // its end is all that matters
	}()
	if err := h.waitReady(ctx, ready); err != nil {
		h.killLocked()
		return err
	}
	return nil
}

// bootTimeout is far more than a host needs on a loaded machine.
const bootTimeout = 30 * time.Second

func (h *Host) waitReady(ctx context.Context, ready *os.File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("not up after %v", bootTimeout))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	_, err := bufio.NewReader(ready).ReadString('\n')
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("start host %s: %w\n%s", h.name, context.Cause(ctx), h.Logs())
	case errors.Is(err, io.EOF):
		return fmt.Errorf("start host %s: it went down at once\n%s", h.name, h.Logs())
	default:
		return fmt.Errorf("start host %s: %w", h.name, err)
	}
}

// Kill ends every process of the host at once, as a power failure does. Its
// store stays for [Host.Restart]; what else it wrote is gone. Killing a host
// that is down does nothing.
func (h *Host) Kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.killLocked()
}

func (h *Host) killLocked() {
	if h.command == nil {
		return
	}
	_ = h.command.Process.Kill() // fails only if it is gone already
	<-h.done
	h.command = nil
}

// Restart boots the host again with its old store, address and keys. A host
// that is up is killed first.
func (h *Host) Restart(ctx context.Context) error {
	h.Kill()
	return h.start(ctx)
}

// pid is the process id of the host's process 1 on this machine.
func (h *Host) pid() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.command == nil {
		return 0, fmt.Errorf("host %s is down", h.name)
	}
	return h.command.Process.Pid, nil
}

// PID is the process id, on this machine, of the running host's process 1.
func (h *Host) PID() (int, error) { return h.pid() }

// Store is the directory of this machine that the host sees as /nix, also while
// it is down.
func (h *Host) Store() string { return h.store }

// Command prepares a command that runs on the host as the user, in a clean
// environment with the additions of env ("NAME=value"). When ctx ends, it and
// its children are interrupted as by Ctrl-C, and killed 10 s later.
func (h *Host) Command(ctx context.Context, user string, env []string, args ...string) (*exec.Cmd, error) {
	pid, err := h.pid()
	if err != nil {
		return nil, err
	}
	home := "/home/" + user
	if user == "root" {
		home = "/root"
	}
	line := []string{
		"--target", fmt.Sprint(pid), "--mount", "--pid", "--net", "--uts", "--root", "--wdns=/",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"TERM=dumb", "HOME=" + home, "USER=" + user, "LOGNAME=" + user,
	}
	line = append(line, env...)
	if user != "root" {
		line = append(line, "setpriv", "--reuid="+user, "--regid="+user, "--init-groups")
	}
	command := exec.CommandContext(ctx, "nsenter", append(line, args...)...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGINT) }
	command.WaitDelay = 10 * time.Second
	return command, nil
}

// EnterCommand is the shell command with which a person looks around on the
// running host.
func (h *Host) EnterCommand() (string, error) {
	pid, err := h.pid()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("nsenter --target %d --mount --pid --net --uts --root --wdns=/ bash -l", pid), nil
}

// Exec runs a command on the host as root and returns its standard output.
// What it wrote to standard error becomes part of the error if it fails.
func (h *Host) Exec(ctx context.Context, args ...string) (string, error) {
	return h.ExecAs(ctx, "root", args...)
}

// ExecAs is [Host.Exec] as another user of the host.
func (h *Host) ExecAs(ctx context.Context, user string, args ...string) (string, error) {
	command, err := h.Command(ctx, user, nil, args...)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s as %s on %s: %w: %s", args[0], user, h.name, err, tail(stderr.Bytes(), 2000))
	}
	return stdout.String(), nil
}

// WriteFile writes a file on the running host; it is gone when the host goes
// down, unless it lies below /nix.
func (h *Host) WriteFile(path, text string, mode os.FileMode) error {
	pid, err := h.pid()
	if err != nil {
		return err
	}
	full := filepath.Join("/proc", fmt.Sprint(pid), "root", path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return fmt.Errorf("write %s on %s: %w", path, h.name, err)
	}
	if err := os.WriteFile(full, []byte(text), mode); err != nil {
		return fmt.Errorf("write %s on %s: %w", path, h.name, err)
	}
	return nil
}

// Logs returns what the host's boot, nix-daemon and sshd wrote since the
// first boot.
func (h *Host) Logs() string {
	var all bytes.Buffer
	for _, name := range []string{"console.log", "nix-daemon.log", "sshd.log"} {
		text, err := os.ReadFile(filepath.Join(h.state, "log", name))
		if err == nil && len(text) > 0 {
			fmt.Fprintf(&all, "--- %s: %s ---\n%s", h.name, name, text)
		}
	}
	return all.String()
}

// StorePaths lists the names in the host's store, sorted, also while the host
// is down.
func (h *Host) StorePaths() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(h.store, "store"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if name := entry.Name(); name[0] != '.' && filepath.Ext(name) != ".lock" {
			names = append(names, name)
		}
	}
	return names, nil
}
