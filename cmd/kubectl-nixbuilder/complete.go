// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/roster"
)

// completionTimeout bounds how long a shell waits for names.
const completionTimeout = 3 * time.Second

// known lists machines for completion, none where the cluster does not tell.
func (p *program) known(cmd *cobra.Command) []roster.Machine {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	c, err := p.connect()
	if err != nil {
		return nil
	}
	builders, err := c.List(ctx, c.Namespace)
	if err != nil {
		return nil
	}
	return roster.New(builders, time.Now()).Machines
}

// completeSubjects offers names of NixBuilders and machines that are not there yet.
func (p *program) completeSubjects(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, m := range p.known(cmd) {
		names = append(names, m.Builder, m.ID())
	}
	return fresh(names, args), cobra.ShellCompDirectiveNoFileComp
}

// completeBuild offers a system, then features.
func (p *program) completeBuild(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var words []string
	for _, m := range p.known(cmd) {
		if len(args) == 0 {
			words = append(words, m.Systems...)
		} else {
			words = append(append(words, m.Features...), m.Mandatory...)
		}
	}
	return fresh(words, args), cobra.ShellCompDirectiveNoFileComp
}

// fresh sorts words and drops those that are there already.
func fresh(words, args []string) []string {
	slices.Sort(words)
	return slices.DeleteFunc(slices.Compact(words), func(word string) bool { return slices.Contains(args, word) })
}
