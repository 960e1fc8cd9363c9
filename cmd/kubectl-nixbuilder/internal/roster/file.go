// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package roster

import (
	"context"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/cmd/kubectl-nixbuilder/internal/show"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
)

// File is the machines file of a namespace, explained. Its JSON is documented in
// docs/kubectl.md.
type File struct {
	Namespace string `json:"namespace"`
	// Published tells whether there is a ConfigMap, Current whether it has what the
	// NixBuilders call for.
	Published bool `json:"published"`
	Current   bool `json:"current"`
	// Text is what is published, else what would be.
	Text     string    `json:"text"`
	Machines []Verdict `json:"machines"`
}

// Verdict says what the file makes of a machine.
type Verdict struct {
	Machine string   `json:"machine"`
	Listed  bool     `json:"listed"`
	Line    string   `json:"line,omitempty"`
	Systems []string `json:"systems,omitempty"`
	// Why says why not, or not for the missing systems, or nevertheless.
	Missing []string `json:"missingSystems,omitempty"`
	Why     string   `json:"why,omitempty"`
}

// NewFile explains the machines file of a namespace with these NixBuilders. data is
// what is published, if that is so.
func NewFile(builders []v1alpha1.NixBuilder, namespace string, data map[string]string, published bool, now time.Time) (*File, error) {
	content, err := machines.Desired(builders, now)
	if err != nil {
		return nil, err
	}
	f := &File{Namespace: namespace, Published: published, Text: data[machines.KeyMachines], Machines: []Verdict{}}
	if !published {
		f.Text = content.Data[machines.KeyMachines]
	}
	f.Current = published && f.Text == content.Data[machines.KeyMachines]
	for _, v := range machines.Verdicts(builders, now) {
		f.Machines = append(f.Machines, Verdict{
			Machine: v.Builder + "/" + v.Endpoint, Listed: v.Line != "", Line: v.Line, Systems: v.Systems, Missing: v.Missing, Why: v.Why,
		})
	}
	return f, nil
}

// Settle reads a file until it is current or patience is over. Who has just been told that a
// machine is listed may ask before the operator has written so.
func Settle(ctx context.Context, read func(context.Context) (*File, error), patience, poll time.Duration) (*File, error) {
	end := time.Now().Add(patience)
	for {
		f, err := read(ctx)
		// Where there are no machines nothing is to be written.
		if err != nil || f.Current || len(f.Machines) == 0 || !time.Now().Before(end) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}

// Print writes the file as it is, with what is to be explained as comments: it is a
// machines file still.
func (f *File) Print(p *show.Printer) {
	if len(f.Machines) == 0 && (f.Current || !f.Published) {
		// The text would have one look for the reasons of NixBuilders.
		p.Linef("%s", p.Styled(show.Dim, "# There are no NixBuilders in namespace "+f.Namespace+"."))
		return
	}
	for line := range strings.Lines(f.Text) {
		p.Linef("%s", show.Clean(strings.TrimSuffix(line, "\n")))
	}
	comment := func(text string) { p.Linef("%s", p.Styled(show.Dim, "# "+strings.ReplaceAll(text, ";", ","))) }
	switch {
	case !f.Published:
		comment("Not published: there is no ConfigMap " + machines.ConfigMapName + " in namespace " + f.Namespace + ". This is what it would have.")
	case !f.Current:
		comment("Not current: the NixBuilders call for other lines than ConfigMap " + machines.ConfigMapName + " has. The operator writes within seconds, if it runs and the ConfigMap is its own.")
	}
	for _, v := range f.Machines {
		switch {
		case !v.Listed:
			comment(v.Machine + " is left out: " + v.Why)
		case v.Why != "":
			comment(v.Machine + ": " + v.Why)
		}
	}
}
