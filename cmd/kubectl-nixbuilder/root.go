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

	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/cluster"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
	"nixbuilder.io/nix-builder-operator/internal/version"
)

const rootHelp = `Say what is wrong with Nix builders and what to do about it.

Exit status: 0 all well or done; 1 something is wrong with a builder, or a build
would go nowhere; 2 that could not be found out, or not be done; 64 the command
line, or a file that it names, is not understood.`

// program is what all commands share.
type program struct {
	streams
	cluster cluster.Options
	// all is -A; output is -o.
	all    bool
	output string
}

func newRoot(s streams) *cobra.Command {
	p := &program{streams: s}
	root := &cobra.Command{
		Use:           "kubectl-nixbuilder",
		Short:         "Look after Nix builders",
		Long:          rootHelp,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl nixbuilder"},
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(fmt.Errorf("%w (%s --help)", err, cmd.CommandPath()))
	})
	flags := root.PersistentFlags()
	flags.StringVar(&p.cluster.Kubeconfig, "kubeconfig", "", "path of the kubeconfig `file`")
	flags.StringVar(&p.cluster.Context, "context", "", "`name` of the kubeconfig's context to use")
	flags.StringVarP(&p.cluster.Namespace, "namespace", "n", "", "`namespace` to work in")
	flags.StringVar(&p.cluster.As, "as", "", "`user` to impersonate")
	flags.StringArrayVar(&p.cluster.AsGroups, "as-group", nil, "`group` to impersonate, may be repeated")
	root.AddCommand(p.doctor(), p.list(), p.machines(), p.why(), p.cordon(), p.uncordon(), p.setup(), p.version())
	for _, command := range root.Commands() {
		command.Args = asUsage(command.Args)
	}
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = asUsage(knownTopic)
	}
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage(fmt.Errorf("unknown command %q (%s --help)", args[0], cmd.CommandPath()))
		}
		return cmd.Help()
	}
	root.Args = cobra.ArbitraryArgs
	return root
}

// asUsage gives complaints about arguments their status.
func asUsage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check == nil {
			return nil
		}
		if err := check(cmd, args); err != nil {
			return usage(fmt.Errorf("%w (%s --help)", err, cmd.CommandPath()))
		}
		return nil
	}
}

// knownTopic refuses what there is no help about.
func knownTopic(cmd *cobra.Command, args []string) error {
	if _, rest, err := cmd.Root().Find(args); err != nil || len(rest) > 0 {
		return fmt.Errorf("there is no help about %q", strings.Join(args, " "))
	}
	return nil
}

// needs asks for at least one argument.
func needs(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return errors.New("say " + what)
		}
		return nil
	}
}

// connect reads the kubeconfig.
func (p *program) connect() (*cluster.Client, error) { return cluster.Connect(p.cluster) }

// addAll adds -A.
func (p *program) addAll(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&p.all, "all-namespaces", "A", false, "look in all namespaces")
}

// addOutput adds -o, with the formats besides that for people.
func (p *program) addOutput(cmd *cobra.Command, formats ...string) {
	cmd.Flags().StringVarP(&p.output, "output", "o", "", "output `format` for programs: "+strings.Join(formats, " or "))
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if p.output != "" && !slices.Contains(formats, p.output) {
			return usage(fmt.Errorf("there is no output format %q, only %s", p.output, strings.Join(formats, " and ")))
		}
		return run(cmd, args)
	}
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

// namespace is the one to look in, empty for all.
func (p *program) namespace(c *cluster.Client) string {
	if p.all {
		return ""
	}
	return c.Namespace
}

func (p *program) printer() *show.Printer { return show.New(p.out, os.Getenv) }

func (p *program) version() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this plugin",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if p.output == "json" {
				return show.JSON(p.out, map[string]string{"version": version.String()})
			}
			_, err := fmt.Fprintln(p.out, version.String())
			return err
		},
	}
	p.addOutput(cmd, "json")
	return cmd
}

// bare takes the type off a name as "kubectl get -o name" prints it.
func bare(name string) string { return strings.TrimPrefix(name, "nixbuilder.nixbuilder.io/") }
