// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/cordon"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/doctor"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
)

const (
	doctorHelp = `Check every requirement of a remote build, now, and say what to change.

In a cluster the operator does the checking, from where it is and with its keys;
this asks it to, waits, and prints what it found. NAME is a NixBuilder, NAME/ENDPOINT
one machine of it; without one, all of the namespace are checked.

With --uri or --machines there is no cluster: the machines are checked from here,
in the same way and with the same words. Keys and host keys are those of the line,
or else those that ssh would use: ~/.ssh/id_ed25519, id_ecdsa and id_rsa, and the
known_hosts files. Neither ssh_config nor ssh-agent is looked at.`
	doctorExample = `  kubectl nixbuilder doctor
  kubectl nixbuilder doctor linux -n ci -o json
  kubectl nixbuilder doctor mac/mac-2
  kubectl nixbuilder doctor --uri ssh-ng://nix@mac-1.example.com --identity ./nix-builder
  kubectl nixbuilder doctor --machines /etc/nix/machines`

	doctorTimeout = 2 * time.Minute
	doctorHint    = 10 * time.Second
	doctorPoll    = 300 * time.Millisecond
)

// doctorOptions are the flags of doctor.
type doctorOptions struct {
	lines   doctor.Lines
	timeout time.Duration
	verbose bool
}

func (p *program) doctor() *cobra.Command {
	o := doctorOptions{lines: doctor.Lines{Stdin: p.in}}
	cmd := &cobra.Command{
		Use:               "doctor [NAME[/ENDPOINT]...]",
		Short:             "Check builders now, step by step, and say what to change",
		Long:              doctorHelp,
		Example:           doctorExample,
		Args:              func(cmd *cobra.Command, args []string) error { return p.checkDoctor(cmd, &o, args) },
		RunE:              func(cmd *cobra.Command, args []string) error { return p.runDoctor(cmd, &o, args) },
		ValidArgsFunction: p.completeSubjects,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "also say what was found where nothing is wrong")
	flags.DurationVar(&o.timeout, "timeout", doctorTimeout, "how long to wait for the operator")
	flags.StringArrayVar(&o.lines.URIs, "uri", nil, "check `this` machine from here: a store URI or a whole line of a machines file; may be repeated")
	flags.StringVar(&o.lines.File, "machines", "", "check every machine of a machines `file` from here (- is standard input)")
	flags.StringArrayVar(&o.lines.Identities, "identity", nil, "private key `file` to log in with, may be repeated")
	flags.StringArrayVar(&o.lines.HostKeys, "host-key", nil, "public `key` line that the machine may present, or a file with one; may be repeated")
	flags.StringArrayVar(&o.lines.KnownHosts, "known-hosts", nil, "known_hosts `file` to look for host keys in, may be repeated")
	flags.BoolVar(&o.lines.FirstUse, "trust-on-first-use", false, "accept any host key where none is known")
	flags.StringVar(&o.lines.RemoteProgram, "remote-program", "", "`path` of nix-daemon on the machine")
	flags.StringVar(&o.lines.ProxyJump, "proxy-jump", "", "SSH `server` ([user@]host[:port]) through which the machine is reached")
	flags.BoolVar(&o.lines.Canary, "canary", false, "also build something tiny for each system")
	flags.DurationVar(&o.lines.StepTimeout, "step-timeout", 0, "bound for each step of a check from here (default 10s)")
	p.addAll(cmd)
	p.addOutput(cmd, "json")
	return cmd
}

// checkDoctor refuses flags that say nothing together.
func (p *program) checkDoctor(cmd *cobra.Command, o *doctorOptions, args []string) error {
	l := &o.lines
	here := len(l.Identities)+len(l.HostKeys)+len(l.KnownHosts) > 0 || l.RemoteProgram+l.ProxyJump != "" || l.Canary || l.FirstUse || cmd.Flags().Changed("step-timeout")
	switch {
	case o.timeout < 0 || l.StepTimeout < 0:
		return errors.New("--timeout and --step-timeout are durations such as 30s, not negative ones")
	case l.Given() && len(args) > 0:
		return errors.New("with --uri or --machines there are no NAMEs")
	case l.Given() && (p.all || cmd.Flags().Changed("timeout")):
		return errors.New("-A and --timeout are for a cluster; with --uri or --machines, --step-timeout bounds each step")
	case p.all && len(args) > 0:
		return errors.New("with -A there are no NAMEs: one of that name could be in any namespace")
	case !l.Given() && here:
		return errors.New("--identity, --host-key, --known-hosts, --trust-on-first-use, --remote-program, --proxy-jump, --step-timeout and --canary go with --uri or --machines: in a cluster the NixBuilder says all that")
	}
	return nil
}

func (p *program) runDoctor(cmd *cobra.Command, o *doctorOptions, names []string) error {
	progress := show.NewProgress(p.err)
	report, err := p.examine(cmd, o, names, progress)
	if err != nil {
		return err
	}
	if p.output == "json" {
		if err := show.JSON(p.out, report); err != nil {
			return err
		}
	} else {
		report.Print(p.printer(), o.verbose)
	}
	switch report.Finding() {
	case doctor.Wrong:
		return &statusError{status: statusWrong}
	case doctor.Unclear:
		return &statusError{status: statusUnclear}
	default:
		return nil
	}
}

func (p *program) examine(cmd *cobra.Command, o *doctorOptions, names []string, progress doctor.Progress) (*doctor.Report, error) {
	if o.lines.Given() {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "/"
		}
		o.lines.Home = home
		report, err := doctor.Probe(cmd.Context(), o.lines, progress)
		if mistake := new(doctor.UsageError); errors.As(err, &mistake) {
			return nil, usage(err)
		}
		return report, err
	}
	c, err := p.connect()
	if err != nil {
		return nil, err
	}
	asking := doctor.Asking{Namespace: p.namespace(c), Timeout: o.timeout, Hint: doctorHint, Poll: doctorPoll}
	if err := choose(&asking, names); err != nil {
		return nil, err
	}
	report, err := doctor.Ask(cmd.Context(), c, asking, progress)
	if err != nil {
		return nil, fmt.Errorf("doctor: %w", err)
	}
	return report, nil
}

// choose fills in what is asked about. A NixBuilder that is named as a whole is reported as
// such, whichever of its endpoints are named besides.
func choose(asking *doctor.Asking, names []string) error {
	asking.Only = make(map[string][]string)
	for _, text := range names {
		subject, err := cordon.ParseSubject(asking.Namespace, bare(text))
		if err != nil {
			return usage(err)
		}
		builder := subject.Builder.Name
		switch {
		case subject.Endpoint == "":
			asking.Only[builder] = nil
		case !slices.Contains(asking.Names, builder) || asking.Only[builder] != nil:
			asking.Only[builder] = append(asking.Only[builder], subject.Endpoint)
		}
		asking.Names = append(asking.Names, builder)
	}
	return nil
}
