// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

const (
	// offerAge is how long what a builder said it offers is taken as current: it
	// changes with its configuration only, and asking starts two programs there.
	offerAge = 10 * time.Minute
	// offerRetry is when a builder that did not tell is asked again.
	offerRetry = 2 * time.Minute
	// maxNames bounds systems and features, maxName the length of each.
	maxNames = 64
	maxName  = 64
)

// offer is what a builder says of itself. Nil lists are not known.
type offer struct {
	systems  []string
	features []string
	maxJobs  int
	cores    int
}

// systems finds out whether the builder can do what is declared: by what it says of
// itself, which never fails, since the answers are those of the user's own processes
// and not of the daemon; and by building something, where that is asked for.
func (c *checker) systems(ctx context.Context, r *report, known *knowledge, conn *sshconn.Conn) {
	if r.target.Discovery {
		known.refresh(ctx, r, conn)
	} else {
		known.offer = nil
		r.facts.Systems, r.facts.Features, r.facts.MaxJobs, r.facts.Cores = nil, nil, 0, 0
	}
	if found := known.offer; found != nil {
		r.facts.Systems, r.facts.Features = found.systems, found.features
		r.facts.MaxJobs, r.facts.Cores = found.maxJobs, found.cores
	}
	verdicts := c.canary(ctx, r, known, conn)
	if !judged(r, verdicts, &known.canaries) {
		compare(r, known.offer, len(verdicts) > 0, known.canaries.featuresWith(StatusTrue))
	}
}

// compare compares what is declared with what the builder says. built tells that
// canaries have confirmed the systems already, and these features.
func compare(r *report, found *offer, built bool, features []string) {
	t := r.target
	wanted := without(t.Features, features)
	doubt := func(reason Reason, missing, offered []string) {
		r.unknown(StepSystemsVerified, reason, messageSystems(t, reason, missing, offered))
	}
	if found == nil && (!built || len(wanted) > 0) {
		if !t.Discovery {
			doubt(ReasonDiscoveryDisabled, nil, nil)
			return
		}
		doubt(ReasonDiscoveryUnavailable, nil, nil)
		return
	}
	if found == nil {
		found = &offer{}
	}
	if missing := without(t.Systems, found.systems); len(missing) > 0 && !built {
		doubt(ReasonSystemsNotConfirmed, missing, found.systems)
		return
	}
	missing := without(wanted, found.features)
	switch {
	case len(missing) > 0 && found.features == nil:
		doubt(ReasonDiscoveryUnavailable, nil, nil)
	case len(missing) > 0:
		doubt(ReasonFeaturesNotConfirmed, missing, found.features)
	case built && len(wanted) == 0:
		r.pass(StepSystemsVerified, ReasonSystemsVerified, t.says("a tiny build succeeds for every system, and one that requires the declared features"))
	case built:
		r.pass(StepSystemsVerified, ReasonSystemsVerified, t.says("a tiny build succeeds for every system, and the declared features are in the builder's configuration"))
	default:
		r.pass(StepSystemsVerified, ReasonSystemsVerified, messageSystems(t, ReasonSystemsVerified, nil, nil))
	}
}

// refresh asks the builder what it offers, where the last answer is no longer taken
// as current. One that was given is kept where now there is none.
func (k *knowledge) refresh(ctx context.Context, r *report, conn *sshconn.Conn) {
	if k.facts.NixVersion != r.facts.NixVersion {
		k.offer, k.offerUntil = nil, time.Time{}
	}
	if now := time.Now(); now.After(k.offerUntil) {
		k.offerUntil = now.Add(offerRetry)
		if found := discover(ctx, r.target, conn); found != nil {
			k.offer, k.offerUntil = found, now.Add(offerAge)
		}
	}
}

func without(wanted, have []string) []string {
	return slices.DeleteFunc(slices.Clone(wanted), func(s string) bool { return slices.Contains(have, s) })
}

// discover asks the builder. It returns nil where it does not tell.
func discover(ctx context.Context, t *Target, conn *sshconn.Conn) *offer {
	said := run(ctx, t, conn, shellWord(t.program("nix-store"))+" --version --verbose")
	if !said.success {
		return nil
	}
	version, systems, ok := parseVersionOutput(said.stdout)
	if !ok {
		return nil
	}
	found := &offer{systems: systems}
	for _, command := range configCommands(version) {
		said := run(ctx, t, conn, shellWord(t.program("nix"))+" --extra-experimental-features nix-command "+command+" --json")
		if said.success && found.readConfig(said.stdout) {
			break
		}
	}
	if found.systems == nil && found.features == nil {
		return nil
	}
	return found
}

// configCommands lists the commands that print the settings, the likelier first:
// 2.20 renamed it. Lix counts from 2.90 and kept the old name at first.
func configCommands(version string) []string {
	const newName, oldName = "config show", "show-config"
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	m, err := strconv.Atoi(minor)
	if major == "2" && err == nil && m < 20 {
		return []string{oldName}
	}
	return []string{newName, oldName}
}

// parseVersionOutput reads what "nix-store --version --verbose" prints: a line with
// program, product and version, then one setting per line.
func parseVersionOutput(text []byte) (version string, systems []string, ok bool) {
	for i, line := range strings.Split(string(text), "\n") {
		if i == 0 {
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "nix-store" {
				return "", nil, false
			}
			version = words[len(words)-1]
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "System type":
			systems = names(append(systems, value)...)
		case "Additional system types":
			systems = names(append(systems, strings.Split(value, ",")...)...)
		}
	}
	return version, systems, true
}

// names keeps what can be a name of a system or feature, sorted by nothing but the
// builder. Everything else in a hostile answer is dropped.
func names(words ...string) []string {
	var out []string
	for _, word := range words {
		word = strings.TrimSpace(word)
		ok := word != "" && len(word) <= maxName && !strings.ContainsFunc(word, func(r rune) bool {
			return r <= ' ' || r >= 0x7f || strings.ContainsRune(`,;"'\`, r)
		})
		if ok && len(out) < maxNames && !slices.Contains(out, word) {
			out = append(out, word)
		}
	}
	return out
}

// readConfig reads the settings in JSON. It reports false, and changes nothing, where
// the text is something else.
func (o *offer) readConfig(text []byte) bool {
	var config struct {
		System         setting[string]   `json:"system"`
		ExtraPlatforms setting[[]string] `json:"extra-platforms"`
		SystemFeatures setting[[]string] `json:"system-features"`
		MaxJobs        setting[int]      `json:"max-jobs"`
		Cores          setting[int]      `json:"cores"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(text), &config); err != nil || config.System.Value == "" {
		return false
	}
	systems := names(append([]string{config.System.Value}, config.ExtraPlatforms.Value...)...)
	if len(systems) == 0 {
		return false
	}
	slices.Sort(systems[1:])
	o.systems = systems
	o.features = append([]string{}, names(config.SystemFeatures.Value...)...)
	slices.Sort(o.features)
	o.maxJobs, o.cores = max(config.MaxJobs.Value, 0), max(config.Cores.Value, 0)
	return true
}

// setting is how Nix shows each of its settings.
type setting[T any] struct {
	Value T `json:"value"`
}
