// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/cluster"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/roster"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
)

func (p *program) list() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List machines, one in a line, with all that is known of each",
		Long: `List the machines of all NixBuilders. "!" stands behind features that a build has to
require to come there; KEY is the Secret whose key the machine accepted.`,
		Example: "  kubectl nixbuilder list -A\n  kubectl nixbuilder list -o name",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := p.connect()
			if err != nil {
				return err
			}
			builders, err := c.List(cmd.Context(), p.namespace(c))
			if err != nil {
				return err
			}
			now := time.Now()
			list := roster.New(builders, now)
			switch {
			case p.output == "json":
				return show.JSON(p.out, list)
			case p.output == "name":
				for i := range list.Machines {
					_, _ = fmt.Fprintln(p.out, list.Machines[i].ID())
				}
			case len(list.Machines) == 0:
				_, _ = fmt.Fprintln(p.err, "there are no NixBuilders "+where(p.namespace(c)))
			default:
				list.Print(p.printer(), p.all, now)
			}
			return nil
		},
	}
	p.addAll(cmd)
	p.addOutput(cmd, "json", "name")
	return cmd
}

func where(namespace string) string {
	if namespace == "" {
		return "in any namespace"
	}
	return "in namespace " + namespace + " (-A looks in all)"
}

// The operator writes the machines file within a second or two of what it learns.
const (
	filePatience = 5 * time.Second
	filePoll     = 300 * time.Millisecond
)

// readFile reads what is published to the namespace, and what the NixBuilders call for.
func readFile(ctx context.Context, c *cluster.Client) (*roster.File, error) {
	builders, err := c.List(ctx, c.Namespace)
	if err != nil {
		return nil, err
	}
	data, published, err := c.MachinesFile(ctx, c.Namespace)
	if err != nil {
		return nil, err
	}
	return roster.NewFile(builders, c.Namespace, data, published, time.Now())
}

func (p *program) machines() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "machines",
		Short: "Print the machines file of a namespace, and who is left out of it and why",
		Long: `Print the machines file that the ConfigMap nix-machines of the namespace has. Comments
at its end say which machines are left out, and why. Exit status 1: the ConfigMap is
missing, or does not have what the NixBuilders call for, also after a few seconds.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := p.connect()
			if err != nil {
				return err
			}
			file, err := roster.Settle(cmd.Context(), func(ctx context.Context) (*roster.File, error) {
				return readFile(ctx, c)
			}, filePatience, filePoll)
			if err != nil {
				return err
			}
			if p.output == "json" {
				err = show.JSON(p.out, file)
			} else {
				file.Print(p.printer())
			}
			if err == nil && !file.Current {
				return &statusError{status: statusWrong}
			}
			return err
		},
	}
	p.addOutput(cmd, "json")
	return cmd
}

func (p *program) why() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "why SYSTEM [FEATURE...]",
		Short: "Say where a build would go, or why it would go nowhere",
		Long: `Say where a build for SYSTEM that requires the FEATUREs would go now, in order of
preference, and for every other machine why not. Exit status 1: nowhere, or it waits.`,
		Example: "  kubectl nixbuilder why x86_64-linux kvm",
		Args:    needs("the SYSTEM of the build, such as x86_64-linux"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := p.connect()
			if err != nil {
				return err
			}
			builders, err := c.List(cmd.Context(), c.Namespace)
			if err != nil {
				return err
			}
			answer := roster.Why(builders, c.Namespace, args[0], args[1:], time.Now())
			if p.output == "json" {
				err = show.JSON(p.out, answer)
			} else {
				answer.Print(p.printer())
			}
			if err == nil && answer.Outcome != roster.Builds {
				return &statusError{status: statusWrong}
			}
			return err
		},
		ValidArgsFunction: p.completeBuild,
	}
	p.addOutput(cmd, "json")
	return cmd
}
