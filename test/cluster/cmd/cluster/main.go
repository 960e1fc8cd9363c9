// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command cluster runs a cluster for trying things by hand: with two Nix
// builders, images with Nix, and any other images that it is given. There is
// one at a time. It is held by a process in the background; when that ends,
// however it does, so does the cluster.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: cluster up [-source DIR] [-image ARCHIVE] [-path DIR]   start the cluster
       cluster shell [COMMAND [ARG…]]   a shell on its first node, or a command
       cluster node                     add a node
       cluster down                     stop it and remove all of it
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return errors.New("say what to do")
	}
	switch command, args := args[0], args[1:]; command {
	case "up":
		return up(ctx, args)
	case "hold":
		return hold(ctx, args)
	case "shell":
		return shell(args)
	case "node":
		return addNode(ctx)
	case "down":
		return down(ctx)
	default:
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("there is no %q", command)
	}
}

// state is what the holder tells the other commands.
type state struct {
	// Holder is the process that holds the cluster.
	Holder int
	// Enter is the command that runs others on the first node.
	Enter []string
	// Environment is what such a command has besides the caller's.
	Environment []string
	// Nodes is how many there are; none until the cluster is up.
	Nodes int
	// Problem is why the cluster, or its newest node, did not start.
	Problem string
	// Greeting tells a person what there is.
	Greeting string
}

// home is where the state of the only cluster lies.
func home() string { return filepath.Join(os.TempDir(), "nix-builder-operator-cluster") }

func stateFile() string { return filepath.Join(home(), "state.json") }

func logFile() string { return filepath.Join(home(), "log") }

// write replaces the state at once.
func (s state) write() error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	next := stateFile() + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	return os.Rename(next, stateFile())
}

var errNone = errors.New("there is no cluster: start one with `make cluster`")

// current reads the state of the cluster that runs.
func current() (state, error) {
	text, err := os.ReadFile(stateFile())
	if errors.Is(err, os.ErrNotExist) {
		return state{}, errNone
	}
	if err != nil {
		return state{}, err
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return state{}, fmt.Errorf("%s: %w", stateFile(), err)
	}
	if !alive(s.Holder) {
		return state{}, errNone
	}
	return s, nil
}

// alive reports whether the process still holds a cluster.
func alive(holder int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", holder))
	return err == nil && strings.Contains(string(line), "\x00hold\x00")
}

// up starts the holder in the background and waits until all is there.
func up(ctx context.Context, args []string) error {
	if s, err := current(); err == nil {
		fmt.Print(s.Greeting)
		return nil
	}
	// What an earlier one may have left that was killed.
	if err := os.RemoveAll(home()); err != nil {
		return err
	}
	if err := os.Mkdir(home(), 0o700); err != nil {
		return err
	}
	log, err := os.Create(logFile())
	if err != nil {
		return err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	holder := exec.Command(self, append([]string{"hold"}, args...)...)
	holder.Stdout, holder.Stderr = log, log
	holder.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := holder.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- holder.Wait() }()
	s, err := await(ctx, ended, func(s state) bool { return s.Nodes > 0 })
	if err != nil {
		if holder.Process.Signal(syscall.SIGTERM) == nil {
			<-ended
		}
		return err
	}
	fmt.Print(s.Greeting)
	return nil
}

// await follows the log until the state is as wanted.
func await(ctx context.Context, ended <-chan error, wanted func(state) bool) (state, error) {
	log, err := os.Open(logFile())
	if err != nil {
		return state{}, err
	}
	defer log.Close()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		if _, err := log.WriteTo(os.Stderr); err != nil {
			return state{}, err
		}
		if s, err := current(); err == nil && wanted(s) {
			return s, nil
		} else if err == nil && s.Problem != "" {
			return state{}, errors.New(s.Problem)
		}
		select {
		case <-ctx.Done():
			return state{}, ctx.Err()
		case <-ended:
			_, _ = log.WriteTo(os.Stderr)
			return state{}, errors.New("the cluster did not start")
		case <-ticker.C:
		}
	}
}

// shell becomes a shell, or another command, on the first node.
func shell(args []string) error {
	s, err := current()
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"bash", "--norc"}
	}
	directory, err := os.Getwd()
	if err != nil {
		return err
	}
	line := append(append([]string{}, s.Enter...), "--wdns="+directory)
	line = append(line, args...)
	program, err := exec.LookPath(line[0])
	if err != nil {
		return err
	}
	return syscall.Exec(program, line, append(os.Environ(), s.Environment...))
}

// addNode has the holder add a node.
func addNode(ctx context.Context) error {
	s, err := current()
	if err != nil {
		return err
	}
	if err := syscall.Kill(s.Holder, syscall.SIGUSR1); err != nil {
		return err
	}
	after, err := await(ctx, nil, func(now state) bool { return now.Nodes > s.Nodes })
	if err != nil {
		return err
	}
	fmt.Printf("There are %d nodes.\n", after.Nodes)
	return nil
}

// down ends the holder, which removes all, and waits for that.
func down(ctx context.Context) error {
	s, err := current()
	if errors.Is(err, errNone) {
		return os.RemoveAll(home())
	}
	if err != nil {
		return err
	}
	if err := syscall.Kill(s.Holder, syscall.SIGTERM); err != nil {
		return err
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for alive(s.Holder) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	text, err := os.ReadFile(logFile())
	if err != nil {
		return err
	}
	if failure, found := strings.CutPrefix(lastLine(string(text)), "cluster: "); found {
		return errors.New(failure)
	}
	return os.RemoveAll(home())
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// options of up, which it hands to the holder.
type options struct {
	source, image, path string
}

func parse(args []string) (options, error) {
	var opts options
	flags := flag.NewFlagSet("cluster up", flag.ContinueOnError)
	flags.StringVar(&opts.source, "source", ".", "the project's source tree")
	flags.StringVar(&opts.image, "image", "", "archive of an image for all nodes")
	flags.StringVar(&opts.path, "path", "", "directory with further programs for the shell")
	return opts, flags.Parse(args)
}
