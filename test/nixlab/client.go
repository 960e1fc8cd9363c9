// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed scripts/client-init.sh
var clientInit string

// VolumePath is where a client sees the directory that stands for the volume
// it shares with a dispatcher.
const VolumePath = "/nix-dispatch"

// ClientOptions for [Lab.StartClient]. Only Name is required.
type ClientOptions struct {
	// Name is unique within the lab; a DNS label.
	Name string
	// Version of Nix; [Newest] by default.
	Version Version
	// Volume is a directory of this machine that the client sees at
	// [VolumePath], read-only; none by default.
	Volume string
	// Daemon has the client run its own nix-daemon, used by an ordinary user
	// ([UntrustedUser]). Without it Nix runs as root on its store.
	Daemon bool
	// Network gives the client this machine's network, ssh, and the key of
	// [Lab.ClientKeyFile] as /etc/nix/builder_key: all that a stock client
	// needs and that one with a dispatcher does without.
	Network bool
	// Namespace is the path of the network namespace that the client has
	// instead of this machine's, if it has a network.
	Namespace string
	// NixConf is appended to the client's nix.conf, which forbids to build
	// here and includes the nix.conf of the volume.
	NixConf string
}

// Client is a machine with Nix that builds nothing itself.
type Client struct {
	*Host
	user string
	env  []string
}

// StartClient boots a client.
func (l *Lab) StartClient(ctx context.Context, opts ClientOptions) (*Client, error) {
	if opts.Version == "" {
		opts.Version = Newest
	}
	root, err := l.rootFS(ctx, opts.Version)
	if err != nil {
		return nil, err
	}
	spec := hostSpec{
		name:       opts.Name,
		root:       root,
		ownNetwork: !opts.Network,
		network:    opts.Namespace,
		files:      map[string]string{},
		public:     map[string]string{"lab-init": clientInit, "etc/nix/nix.conf": clientNixConf(opts)},
	}
	options := ""
	c := &Client{user: "root"}
	if opts.Daemon {
		options += "LAB_DAEMON=1\n"
		c.user, c.env = UntrustedUser, []string{"NIX_REMOTE=daemon"}
	}
	if opts.Network {
		options += "LAB_SSH=1\n"
		key, err := os.ReadFile(l.ClientKeyFile())
		if err != nil {
			return nil, fmt.Errorf("client %s: %w", opts.Name, err)
		}
		spec.files["etc/nix/builder_key"] = string(key)
	}
	spec.public["lab-options"] = options
	if opts.Volume != "" {
		volume, err := filepath.Abs(opts.Volume)
		if err != nil {
			return nil, fmt.Errorf("client %s: %w", opts.Name, err)
		}
		spec.binds = []bind{{source: volume, target: VolumePath, readOnly: true}}
	}
	if c.Host, err = l.startHost(ctx, spec); err != nil {
		return nil, err
	}
	return c, nil
}

func clientNixConf(opts ClientOptions) string {
	return joinLines(
		"sandbox = false",
		"substituters =",
		"trusted-users = root",
		"allowed-users = *",
		"max-jobs = 0",
		"!include "+VolumePath+"/nix.conf",
		"experimental-features = nix-command",
		opts.NixConf,
	)
}

// Result is the outcome of a command on a client.
type Result struct {
	// Stdout and Stderr are all that it wrote.
	Stdout, Stderr string
	// Status is the exit status; -1 if it ended by a signal.
	Status int
}

// NixBuild runs nix-build with the arguments, and without leaving a link, the
// way the client's ordinary user would (root, or the user of its nix-daemon).
// A failing build is no error but a [Result] with its status. When ctx ends,
// nix-build is interrupted as by Ctrl-C and ctx's error returned.
func (c *Client) NixBuild(ctx context.Context, args ...string) (Result, error) {
	return c.Run(ctx, append([]string{"nix-build", "--no-out-link"}, args...)...)
}

// NixBuildExpr is [Client.NixBuild] of an expression.
func (c *Client) NixBuildExpr(ctx context.Context, expression string, args ...string) (Result, error) {
	return c.NixBuild(ctx, append([]string{"--expr", expression}, args...)...)
}

// Run runs any command as [Client.NixBuild] does.
func (c *Client) Run(ctx context.Context, args ...string) (Result, error) {
	command, err := c.NixCommand(ctx, args...)
	if err != nil {
		return Result{}, err
	}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err = command.Run()
	result := Result{Stdout: stdout.String(), Stderr: stderr.String(), Status: command.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if ctx.Err() != nil {
		return result, fmt.Errorf("%s on %s: %w\n%s", args[0], c.name, context.Cause(ctx), tail(stderr.Bytes(), 2000))
	}
	if err != nil && !errors.As(err, &exit) {
		return result, fmt.Errorf("%s on %s: %w", args[0], c.name, err)
	}
	return result, nil
}

// NixCommand prepares a command that runs as [Client.Run] does, for callers
// that want its output while it runs.
func (c *Client) NixCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	return c.Command(ctx, c.user, c.env, args...)
}
