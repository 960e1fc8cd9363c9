// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/setup"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
)

// The parts of what setup prints.
const (
	partMachine = "machine"
	partCluster = "cluster"
)

func (p *program) setup() *cobra.Command {
	o := setup.Options{}
	var publicKey, only string
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Print what makes a machine a builder: account, key, nix.conf, sshd, NixBuilder",
		Long: `Print what to do on a machine with Nix, and in the cluster, so that it becomes a builder.
Nothing is done. With --only it is a script (for NixOS a module) that can be piped on.`,
		Example: `  ssh-keygen -t ed25519 -N '' -f nix-builder
  kubectl nixbuilder setup --for linux --public-key nix-builder.pub --host linux-1.example.com
  kubectl nixbuilder setup --public-key nix-builder.pub --only machine | ssh root@linux-1.example.com sh`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if only != "" && only != partMachine && only != partCluster {
				return usage(fmt.Errorf("--only is %s or %s, not %q", partMachine, partCluster, only))
			}
			if only != "" && publicKey == "" {
				return usage(errors.New("--only needs --public-key: what is piped on must be complete"))
			}
			if only == partCluster && (o.Host == "" || o.HostKey == "") {
				return usage(errors.New("--only cluster needs --host and --host-key: what is piped on must be complete"))
			}
			return p.runSetup(o, publicKey, only)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.For, "for", setup.Linux, "the machine's `kind`: "+strings.Join(setup.Kinds(), ", "))
	flags.StringVar(&o.User, "user", "nix-ssh", "`account` to log in to")
	flags.StringVar(&publicKey, "public-key", "", "`file` with the public key of operator and dispatchers")
	flags.StringArrayVar(&o.From, "from", nil, "only `address` (or range) from which the key may be used; may be repeated")
	flags.BoolVar(&o.DaemonOnly, "daemon-only", false, "allow the key nothing but nix-daemon; needs --system")
	flags.StringVar(&o.RemoteProgram, "remote-program", "", "`path` of nix-daemon on the machine, where PATH lacks it")
	flags.StringVar(&o.Name, "name", "", "`name` of the NixBuilder (default linux, or mac)")
	flags.StringVar(&o.Secret, "secret", "builder-key", "`name` of the Secret for the private key")
	flags.StringVar(&o.Host, "host", "", "the machine's DNS name or `address`")
	flags.IntVar(&o.Port, "port", 0, "`port` of the machine's sshd (default 22)")
	flags.StringVar(&o.HostKey, "host-key", "", "the machine's public host `key`")
	flags.StringArrayVar(&o.Systems, "system", nil, "`system` that the machine builds for, else it is asked; may be repeated")
	flags.StringVar(&only, "only", "", "print one `part` alone: machine or cluster")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(setup.Kinds(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("only", cobra.FixedCompletions([]string{partMachine, partCluster}, cobra.ShellCompDirectiveNoFileComp))
	p.addOutput(cmd, "json")
	return cmd
}

func (p *program) runSetup(o setup.Options, publicKey, only string) error {
	if publicKey != "" {
		text, err := os.ReadFile(publicKey)
		if err != nil {
			return usage(fmt.Errorf("--public-key: %w", err))
		}
		o.PublicKey, o.PrivateKey = string(text), strings.TrimSuffix(publicKey, ".pub")
	}
	o.Namespace = p.cluster.Namespace
	text, err := setup.New(o)
	switch {
	case err != nil:
		return usage(err)
	case p.output == "json":
		return show.JSON(p.out, text)
	}
	parts := []string{text.Machine, text.Cluster}
	switch only {
	case partMachine:
		parts = parts[:1]
	case partCluster:
		parts = parts[1:]
	}
	_, err = fmt.Fprint(p.out, strings.Join(slices.Clip(parts), "\n"))
	return err
}
