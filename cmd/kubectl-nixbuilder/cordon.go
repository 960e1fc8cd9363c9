// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/cluster"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/cordon"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/roster"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
)

// cordoned is the JSON of what cordon and uncordon did.
type cordoned struct {
	Subjects []cordonedSubject `json:"subjects"`
}

type cordonedSubject struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Changed   bool           `json:"changed"`
	Cordon    *roster.Cordon `json:"cordon"`
	// Unserved are systems for which no machine is in use now.
	Unserved []string `json:"unservedSystems,omitempty"`
	// Note is why it is cordoned still.
	Note string `json:"note,omitempty"`
}

func (p *program) cordon() *cobra.Command {
	var reason, until string
	cmd := &cobra.Command{
		Use:   "cordon NAME[/ENDPOINT]... --reason TEXT",
		Short: "Take a builder, or one machine of it, out of use",
		Long: `Take a NixBuilder, or one endpoint of it, out of use: no new builds, while running
ones finish. It is checked all the same. The reason is shown to those whose builds wait.`,
		Example: `  kubectl nixbuilder cordon linux --reason 'kernel update'
  kubectl nixbuilder cordon mac/mac-2 --reason 'new disk' --until 2h`,
		Args: needs("what to cordon: NAME or NAME/ENDPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usage(errors.New("say why with --reason: it is shown to those whose builds wait"))
			}
			wanted := &v1alpha1.Cordon{Reason: reason}
			if until != "" {
				end, err := cordon.ParseUntil(until, time.Now())
				if err != nil {
					return usage(fmt.Errorf("--until: %w", err))
				}
				wanted.Until = &metav1.Time{Time: end}
			}
			return p.setCordon(cmd.Context(), args, wanted)
		},
		ValidArgsFunction: p.completeSubjects,
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, in a line of `text`")
	cmd.Flags().StringVar(&until, "until", "", "`when` it ends by itself: 90m, 7d, 18:00, \"2030-01-04 18:00\" or 2030-01-04T18:00:00Z")
	p.addOutput(cmd, "json")
	return cmd
}

func (p *program) uncordon() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "uncordon NAME[/ENDPOINT]...",
		Short:   "Put a builder, or one machine of it, back into use",
		Example: `  kubectl nixbuilder uncordon mac/mac-2`,
		Args:    needs("what to uncordon: NAME or NAME/ENDPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.setCordon(cmd.Context(), args, nil)
		},
		ValidArgsFunction: p.completeSubjects,
	}
	p.addOutput(cmd, "json")
	return cmd
}

// setCordon cordons all subjects, or uncordons them where wanted is nil.
func (p *program) setCordon(ctx context.Context, names []string, wanted *v1alpha1.Cordon) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	var subjects []cordon.Subject
	for _, name := range names {
		subject, err := cordon.ParseSubject(c.Namespace, bare(name))
		if err != nil {
			return usage(err)
		}
		subjects = append(subjects, subject)
	}
	done := cordoned{Subjects: []cordonedSubject{}}
	var failure error
	for _, subject := range subjects {
		before, changed, err := cordon.Set(ctx, c, subject, wanted)
		if err != nil {
			failure = err // What was changed before is to be told all the same.
			break
		}
		s := cordonedSubject{Namespace: c.Namespace, Name: subject.String(), Changed: changed}
		if wanted != nil {
			s.Cordon = &roster.Cordon{Reason: wanted.Reason}
			if wanted.Until != nil {
				s.Cordon.Until = &wanted.Until.Time
			}
			s.Unserved = p.unserved(ctx, c, subject)
		} else {
			s.Note = stillCordoned(subject, before, time.Now())
		}
		done.Subjects = append(done.Subjects, s)
	}
	if p.output == "json" {
		return errors.Join(show.JSON(p.out, done), failure)
	}
	for _, s := range done.Subjects {
		s.print(p.printer())
	}
	return failure
}

// unserved lists the systems that lose their last machine. Not to know is no failure:
// what was asked for is done.
func (p *program) unserved(ctx context.Context, c *cluster.Client, s cordon.Subject) []string {
	builders, err := c.List(ctx, c.Namespace)
	if err != nil {
		return nil
	}
	return roster.New(builders, time.Now()).Unserved(c.Namespace, s.Builder.Name, s.Endpoint)
}

// stillCordoned tells of the other cordon under which a subject stays.
func stillCordoned(s cordon.Subject, before *v1alpha1.NixBuilder, now time.Time) string {
	if s.Endpoint != "" {
		if before.Spec.Cordon.ActiveAt(now) {
			return fmt.Sprintf("stays out of use: all of %[1]s is cordoned (%[2]s); kubectl nixbuilder uncordon %[1]s ends that", s.Builder.Name, before.Spec.Cordon.Reason)
		}
		return ""
	}
	var names []string
	for i := range before.Spec.Endpoints {
		if before.Spec.Endpoints[i].Cordon.ActiveAt(now) {
			names = append(names, s.Builder.Name+"/"+before.Spec.Endpoints[i].Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "these stay out of use, by cordons of their own: " + strings.Join(names, ", ")
}

func (s *cordonedSubject) print(p *show.Printer) {
	text := s.Name + " is "
	switch {
	case s.Cordon == nil && s.Note != "" && strings.Contains(s.Name, "/"):
		// It is under another cordon, so it is not to be called uncordoned.
		text = s.Name + " has no cordon of its own"
		if s.Changed {
			text += " any more"
		}
	case s.Cordon == nil && s.Changed:
		text += "uncordoned"
	case s.Cordon == nil:
		text += "not cordoned"
	case s.Changed:
		text += "cordoned"
	default:
		text += "cordoned already"
	}
	if s.Cordon != nil && s.Cordon.Until != nil {
		text += " until " + s.Cordon.Until.Local().Format("2006-01-02 15:04:05 MST")
	}
	p.Linef("%s", show.Clean(text))
	if s.Note != "" {
		p.Paragraph(2, show.Doubt, s.Note)
	}
	if len(s.Unserved) > 0 {
		p.Paragraph(2, show.Doubt, "no machine is in use any more for "+strings.Join(s.Unserved, ", ")+": such builds wait")
	}
}
