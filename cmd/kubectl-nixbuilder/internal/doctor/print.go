// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package doctor

import (
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// Columns of a step: how deep it is indented, and how wide type and result are.
const (
	deep        = 2
	typeWidth   = 17
	resultWidth = 8
	timeWidth   = 9
)

// Print writes the report for people. verbose adds what was found where nothing is
// wrong.
func (r *Report) Print(p *show.Printer, verbose bool) {
	for i := range r.Builders {
		if i > 0 {
			p.Linef("")
		}
		r.Builders[i].print(p, verbose)
	}
	if summary := r.summary(); summary != "" {
		p.Linef("")
		p.Linef("%s", p.Styled(styleOf(r.Finding()), summary))
	}
}

func (b *Builder) print(p *show.Printer, verbose bool) {
	indent := 0
	if b.Name != "" {
		p.Linef("%s  %s", p.Styled(show.Strong, b.Namespace+"/"+b.Name), headline(p, b.Finding, b.Doubts))
		indent = deep
	}
	if b.Problem != "" {
		p.Paragraph(indent, show.Doubt, b.Problem)
	}
	for _, step := range b.Steps {
		step.print(p, indent, verbose)
	}
	for i := range b.Machines {
		if i > 0 && indent == 0 {
			p.Linef("")
		}
		b.Machines[i].print(p, indent, verbose)
	}
}

func (m *Machine) print(p *show.Printer, indent int, verbose bool) {
	title := m.Name
	// A URI has its host in it already.
	if m.Address != "" && !strings.Contains(title, "://") {
		title += " (" + m.Address + ")"
	}
	p.Linef("%s%s  %s", strings.Repeat(" ", indent), p.Styled(show.Strong, title), headline(p, m.Finding, m.Doubts))
	indent += deep
	if m.Problem != "" {
		p.Paragraph(indent, show.Doubt, m.Problem)
	}
	for _, step := range m.Steps {
		step.print(p, indent, verbose)
	}
	if m.Cordon != nil {
		text := "cordoned: " + m.Cordon.Reason
		if m.Cordon.Until != nil {
			text = fmt.Sprintf("cordoned until %s: %s", m.Cordon.Until.Local().Format(time.DateTime), m.Cordon.Reason)
		}
		p.Paragraph(indent, show.Doubt, text)
	}
	if m.File != nil {
		p.Paragraph(indent, show.Plain, "machines file: "+m.File.text())
	}
}

func (f *File) text() string {
	switch {
	case !f.Listed && f.Why == "":
		return "left out"
	case !f.Listed:
		return "left out: " + f.Why
	case f.Why != "":
		return "listed for " + strings.Join(f.Systems, ", ") + ": " + f.Why
	default:
		return "listed for " + strings.Join(f.Systems, ", ")
	}
}

func (s *Step) print(p *show.Printer, indent int, verbose bool) {
	result, style := "ok", show.Good
	took := fmt.Sprintf("%d ms", s.Milliseconds)
	if s.Milliseconds == 0 {
		took = ""
	}
	reason := s.Reason
	switch {
	case s.Status == string(metav1.ConditionFalse):
		result, style = "WRONG", show.Bad
	case s.Reason == string(probe.ReasonNotReached):
		result, style, took, reason = "-", show.Dim, "", "not reached"
	case s.Status != string(metav1.ConditionTrue):
		result, style = "unknown", show.Doubt
	case !verbose:
		reason = ""
	}
	line := fmt.Sprintf("%s%-*s %s%s %*s  %s", strings.Repeat(" ", indent), typeWidth, s.Type,
		p.Styled(style, result), strings.Repeat(" ", max(0, resultWidth-len(result))), timeWidth, took, reason)
	p.Linef("%s", strings.TrimRight(line, " "))
	plain := s.Status == string(metav1.ConditionTrue) || s.Reason == string(probe.ReasonNotReached)
	if s.Message != "" && (verbose || !plain) {
		p.Paragraph(indent+deep, show.Plain, s.Message)
	}
}

// summary counts, where there is more than one machine.
func (r *Report) summary() string {
	counts := make(map[Finding]int)
	all, doubts := 0, 0
	for _, b := range r.Builders {
		doubts += b.Doubts
		if len(b.Machines) == 0 {
			counts[b.Finding]++
			all++
		}
		for _, m := range b.Machines {
			counts[m.Finding]++
			all++
		}
	}
	if all < 2 {
		return ""
	}
	text := fmt.Sprintf("%d machines: %d well", all, counts[Well])
	if counts[Wrong] > 0 {
		text += fmt.Sprintf(", %d with something wrong", counts[Wrong])
	}
	if counts[Unclear] > 0 {
		text += fmt.Sprintf(", %d not found out", counts[Unclear])
	}
	if doubts > 0 {
		text += "; " + inDoubt(doubts)
	}
	return text
}

// headline says in short what was found. Doubts take nothing out of use, but nobody would
// look for them below the word that all is well.
func headline(p *show.Printer, f Finding, doubts int) string {
	if f != Well || doubts == 0 {
		return p.Styled(styleOf(f), word(f))
	}
	return p.Styled(show.Doubt, "well, "+inDoubt(doubts))
}

func inDoubt(count int) string {
	if count == 1 {
		return "1 doubt"
	}
	return fmt.Sprintf("%d doubts", count)
}

func word(f Finding) string {
	return map[Finding]string{Well: "all well", Wrong: "SOMETHING IS WRONG", Unclear: "not found out"}[f]
}

func styleOf(f Finding) show.Style {
	return map[Finding]show.Style{Well: show.Good, Wrong: show.Bad, Unclear: show.Doubt}[f]
}
