// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/builders"
	"nixbuilder.io/nix-builder-operator/test/nixlab"
)

const page = "docs/troubleshooting.md"

// pageHead is what the page says before the causes.
//
//go:embed testdata/troubleshooting.md
var pageHead string

// book collects what was found out about causes.
type book struct {
	order []cause

	mu       sync.Mutex
	expected []string
	findings map[string]finding
}

func newBook() *book { return &book{findings: map[string]finding{}} }

func examination(c cause, version nixlab.Version) string { return c.name + "/" + string(version) }

// expect says that a cause is going to be examined.
func (b *book) expect(c cause, version nixlab.Version) {
	if len(b.order) == 0 || b.order[len(b.order)-1].name != c.name {
		b.order = append(b.order, c)
	}
	b.expected = append(b.expected, examination(c, version))
}

func (b *book) add(c cause, version nixlab.Version, f finding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.findings[examination(c, version)] = f
}

// missing lists the examinations that did not take place.
func (b *book) missing() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.expected), func(name string) bool {
		_, ok := b.findings[name]
		return ok
	})
}

// of lists what was found about a cause, in the order of versions.
func (b *book) of(c cause) []finding {
	var all []finding
	for _, name := range b.expected {
		if base, _, _ := strings.Cut(name, "/"); base == c.name {
			all = append(all, b.findings[name])
		}
	}
	return all
}

// render makes the page.
func (b *book) render() string {
	var text strings.Builder
	text.WriteString(strings.TrimSpace(pageHead) + "\n\n## Causes\n\n| Condition | REASON | What is the case |\n|---|---|---|\n")
	sections := conditionOrder()
	for _, condition := range sections {
		for _, c := range b.order {
			if c.want.condition == condition {
				fmt.Fprintf(&text, "| %s | `%s` | [%s](#%s) |\n", condition, c.want.reason, c.title, anchor(c.title))
			}
		}
	}
	for _, condition := range sections {
		heading := fmt.Sprintf("\n## %s\n", condition)
		for _, c := range b.order {
			if c.want.condition != condition {
				continue
			}
			text.WriteString(heading + b.entry(c))
			heading = ""
		}
	}
	return text.String()
}

// conditionOrder lists the conditions as `kubectl describe` does.
func conditionOrder() []string {
	order := []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionCredentialsValid}
	for _, step := range probe.Steps() {
		order = append(order, string(step))
	}
	return append(order, v1alpha1.ConditionReady, v1alpha1.ConditionCordoned)
}

// entry is what the page says about a cause.
func (b *book) entry(c cause) string {
	want := c.want.withDefaults()
	all := b.of(c)
	var text strings.Builder
	fmt.Fprintf(&text, "\n### %s\n\n%s is %s, `%s`. %s\n\n", c.title, want.condition, want.status, want.reason, inUse(want, all[0]))
	var messages []string
	for _, f := range all {
		if !slices.Contains(messages, f.page) {
			messages = append(messages, f.page)
		}
	}
	fmt.Fprintf(&text, "> %s\n", strings.Join(messages, "\n>\n> "))
	for _, paragraph := range []struct{ lead, text string }{
		{"", c.means}, {"Nix alone says: ", c.nixSays}, {"**Remedy:** ", c.mend},
	} {
		if paragraph.text != "" {
			fmt.Fprintf(&text, "\n%s%s\n", paragraph.lead, paragraph.text)
		}
	}
	return text.String()
}

// inUse says whether builds still go to the machine.
func inUse(want diagnosis, f finding) string {
	entry, probed := catalogued(want.reason)
	switch {
	case f.inUse && f.listed:
		return "The machine stays in use."
	case f.inUse:
		return "The machine takes no builds, but is probed and found well."
	case probed && !entry.AtOnce:
		return "Out of use after `failureThreshold` probes that end so; `READY` is " + f.ready + "."
	default:
		return "Out of use at once; `READY` is " + f.ready + "."
	}
}

func catalogued(reason string) (probe.Entry, bool) {
	for _, entry := range probe.Catalogue() {
		if string(entry.Reason) == reason {
			return entry, true
		}
	}
	return probe.Entry{}, false
}

// anchor is what a heading is linked by.
func anchor(heading string) string {
	heading = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading), "")
	return strings.ReplaceAll(heading, " ", "-")
}

// withoutParticulars replaces what differs between machines, and from run to run, by
// what a reader may take for an example.
func (p *patient) withoutParticulars(message string) string {
	for _, pair := range [][2]string{
		{p.Address(), "linux-1.example.com:22"}, {p.IP(), "linux-1.example.com"}, {p.host, "linux-1.example.com"},
		{p.namespace, "ci"}, {p.Nix(), "2.x"},
		{"~" + nixlab.TrustedUser, "~nix-ssh"}, {builders.DefaultSecret, "builder-key"},
		{fmt.Sprintf("%ds", patientTimeout), "10s"},
	} {
		message = strings.ReplaceAll(message, pair[0], pair[1])
	}
	for _, pair := range [][2]string{
		{`\bnixt\b`, "nix-ssh"}, {`\bnixu\b`, "nix-ssh"},
		{`SHA256:[A-Za-z0-9+/]{43}`, "SHA256:…"}, {`AAAA[A-Za-z0-9+/]{20,}={0,2}`, "AAAA…"},
		{`/nix/store/[0-9a-z]{32}-`, "/nix/store/…-"}, {`127\.\d+\.\d+\.\d+`, "10.0.0.7"},
		{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`, "2030-01-04T18:00:00Z"},
		{`OpenSSH_[0-9.]+p[0-9]+( Debian-[^ "]+)?`, "OpenSSH_x.y"},
	} {
		message = regexp.MustCompile(pair[0]).ReplaceAllString(message, pair[1])
	}
	return message
}

// comparePage compares the committed page with the results. With UPDATE_DOCS in the
// environment, as `make troubleshooting` sets it, the page is brought up to date.
func comparePage(t *testing.T, results *book) {
	t.Helper()
	path := filepath.Join("..", "..", page)
	committed, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	want := results.render()
	if string(committed) == want {
		return
	}
	if os.Getenv("UPDATE_DOCS") != "" {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s differs from what was found: run `make troubleshooting` and commit it (-page +found):\n%s", page,
		cmp.Diff(strings.Split(string(committed), "\n"), strings.Split(want, "\n")))
}
