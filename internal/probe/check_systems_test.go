// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

const (
	storeCommand  = "nix-store "
	configCommand = "nix --extra-experimental-features nix-command config show"
	oldCommand    = "nix --extra-experimental-features nix-command show-config"
)

// systemsCase is a builder that answers in some way, and what that means for what is
// declared.
type systemsCase struct {
	commands   map[string]sshtest.Exec
	change     func(*Target)
	wantReason Reason
	wantWords  []string
	want       *Facts // Systems, Features, MaxJobs, Cores; nil is all of the fixture
}

func (c systemsCase) meet(t *testing.T) {
	t.Parallel()
	nix := newNix(t, daemontest.Options{})
	for beginning, exec := range c.commands {
		nix.commands[beginning] = exec
	}
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: nix.exec}))
	if c.change != nil {
		c.change(&target)
	}
	result, _ := probeOnce(t, target)
	if failure, failed := result.Failure(); failed {
		t.Fatalf("it blocks: %+v", failure)
	}
	got := result.Outcome(StepSystemsVerified)
	t.Log(got.Message)
	if got.Reason != c.wantReason {
		t.Errorf("got %+v, want %s", got, c.wantReason)
	}
	for _, word := range c.wantWords {
		if !strings.Contains(got.Message, word) {
			t.Errorf("message %q lacks %q", got.Message, word)
		}
	}
	want := c.want
	if want == nil {
		want = &Facts{
			Systems:  []string{"x86_64-linux", "i686-linux", "x86_64-v1-linux"},
			Features: []string{"benchmark", "big-parallel", "nixos-test"}, MaxJobs: 4, Cores: 8,
		}
	}
	f := result.Facts
	if diff := cmp.Diff(*want, Facts{Systems: f.Systems, Features: f.Features, MaxJobs: f.MaxJobs, Cores: f.Cores}); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

func TestSystems(t *testing.T) {
	t.Parallel()
	oldVersion := strings.Replace(versionOutput, "2.34.8", "2.8.0", 1)
	tests := map[string]systemsCase{
		"all there": {wantReason: ReasonSystemsVerified},
		"nothing declared": {
			change:     func(t *Target) { t.Systems, t.Features = nil, nil },
			wantReason: ReasonSystemsVerified,
		},
		"a system is missing": {
			change:     func(t *Target) { t.Systems = []string{"aarch64-linux", "x86_64-linux"} },
			wantReason: ReasonSystemsNotConfirmed, wantWords: []string{"aarch64-linux is not", "x86_64-linux, i686-linux", "extra-platforms"},
		},
		"a feature is missing": {
			change:     func(t *Target) { t.Features = []string{"kvm"} },
			wantReason: ReasonFeaturesNotConfirmed, wantWords: []string{"kvm is not", "/dev/kvm"},
		},
		"discovery disabled": {
			change:     func(t *Target) { t.Discovery = false },
			wantReason: ReasonDiscoveryDisabled, want: &Facts{},
		},
		"before 2.20": {
			commands: map[string]sshtest.Exec{
				storeCommand: print(oldVersion), oldCommand: print(configOutput), configCommand: fail(1, "unknown"),
			},
			wantReason: ReasonSystemsVerified,
		},
		"Lix": {
			commands: map[string]sshtest.Exec{
				storeCommand: print(strings.Replace(versionOutput, "(Nix) 2.34.8", "(Lix, like Nix) 2.90.0", 1)),
				oldCommand:   print(configOutput), configCommand: fail(1, "unknown"),
			},
			wantReason: ReasonSystemsVerified,
		},
	}
	for name, tc := range tests {
		t.Run(name, tc.meet)
	}
}

// TestSystemsUnknown: what cannot be found out blocks nothing, and what makes no sense
// is dropped.
func TestSystemsUnknown(t *testing.T) {
	t.Parallel()
	tests := map[string]systemsCase{
		"no nix-store": {
			commands:   map[string]sshtest.Exec{storeCommand: fail(127, "not found")},
			wantReason: ReasonDiscoveryUnavailable, want: &Facts{},
		},
		"forced command": {
			// Whatever is asked for, the protocol's server answers.
			commands:   map[string]sshtest.Exec{storeCommand: hang, "nix ": hang},
			wantReason: ReasonDiscoveryUnavailable, want: &Facts{},
		},
		"forced command that prints": {
			commands:   map[string]sshtest.Exec{storeCommand: print("nxid and more")},
			wantReason: ReasonDiscoveryUnavailable, want: &Facts{},
		},
		"hangs": {
			commands: map[string]sshtest.Exec{storeCommand: func(_ string, stdio sshtest.Stdio) int {
				<-stdio.Done
				return 0
			}},
			change:     func(t *Target) { t.Timeout = shortTimeout },
			wantReason: ReasonDiscoveryUnavailable, want: &Facts{},
		},
		"no nix-command": {
			commands:   map[string]sshtest.Exec{"nix ": fail(1, "error")},
			change:     func(t *Target) { t.Features = nil },
			wantReason: ReasonSystemsVerified,
			want:       &Facts{Systems: []string{"x86_64-linux", "i686-linux", "x86_64-v1-linux"}},
		},
		"no nix-command, but features declared": {
			commands:   map[string]sshtest.Exec{"nix ": fail(1, "error")},
			wantReason: ReasonDiscoveryUnavailable,
			want:       &Facts{Systems: []string{"x86_64-linux", "i686-linux", "x86_64-v1-linux"}},
		},
		"JSON of something else": {
			commands:   map[string]sshtest.Exec{"nix ": print(`{"system":"x"}`)},
			wantReason: ReasonDiscoveryUnavailable,
			want:       &Facts{Systems: []string{"x86_64-linux", "i686-linux", "x86_64-v1-linux"}},
		},
		"endless": {
			commands: map[string]sshtest.Exec{storeCommand: func(_ string, stdio sshtest.Stdio) int {
				for {
					if _, err := fmt.Fprint(stdio.Stdout, strings.Repeat("x", 1<<16)); err != nil {
						return 0
					}
				}
			}},
			wantReason: ReasonDiscoveryUnavailable, want: &Facts{},
		},
		"hostile names": {
			commands: map[string]sshtest.Exec{configCommand: print(
				`{"system":{"value":"x86_64-linux"},"extra-platforms":{"value":["a b","c\n d","e,f","` + strings.Repeat("x", 65) + `",""]},` +
					`"system-features":{"value":["big-parallel","\u001b[31m"]},"max-jobs":{"value":-3}}`)},
			wantReason: ReasonSystemsVerified,
			want:       &Facts{Systems: []string{"x86_64-linux"}, Features: []string{"big-parallel"}},
		},
		"hostile system": {
			commands:   map[string]sshtest.Exec{configCommand: print(`{"system":{"value":"a b"}}`), oldCommand: fail(1, "")},
			wantReason: ReasonDiscoveryUnavailable,
			want:       &Facts{Systems: []string{"x86_64-linux", "i686-linux", "x86_64-v1-linux"}},
		},
	}
	for name, tc := range tests {
		t.Run(name, tc.meet)
	}
}

// TestSystemsAreAskedSeldom: the builder need not start two programs for every probe,
// and one that cannot answer once loses nothing.
func TestSystemsAreAskedSeldom(t *testing.T) {
	t.Parallel()
	nix := newNix(t, daemontest.Options{})
	var asked, broken atomic.Int32
	nix.commands[storeCommand] = func(command string, stdio sshtest.Stdio) int {
		asked.Add(1)
		if broken.Load() > 0 {
			return 1
		}
		return print(versionOutput)(command, stdio)
	}
	server := sshtest.New(t, sshtest.Behavior{Exec: nix.exec})
	target := targetFor(t, server)
	result, known := probeOnce(t, target)
	expectAsked := func(want int32, why string) {
		t.Helper()
		if got := asked.Load(); got != want || result.Outcome(StepSystemsVerified).Reason != ReasonSystemsVerified {
			t.Errorf("%s: asked %d times, want %d; %+v", why, got, want, result.Outcome(StepSystemsVerified))
		}
	}
	expectAsked(1, "at first")
	result, known = probeAgain(t, target, known)
	expectAsked(1, "soon after")
	known.offerUntil = time.Now().Add(-time.Second)
	broken.Store(1)
	result, known = probeAgain(t, target, known)
	expectAsked(2, "later, without an answer")
	result, known = probeAgain(t, target, known)
	expectAsked(2, "soon after that")
	broken.Store(0)

	// It comes back from an outage, perhaps with another configuration.
	server.Set(sshtest.Behavior{Fault: sshtest.FaultHangUp})
	_, known = probeAgain(t, target, known)
	server.Set(sshtest.Behavior{Exec: nix.exec})
	result, known = probeAgain(t, target, known)
	expectAsked(3, "after an outage")

	known.facts.NixVersion = "2.8.0"
	result, _ = probeAgain(t, target, known)
	expectAsked(4, "after an update")
}

// TestDiscoveryDisabledLater: what was found out before is no longer reported.
func TestDiscoveryDisabledLater(t *testing.T) {
	t.Parallel()
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: newNix(t, daemontest.Options{}).exec}))
	_, known := probeOnce(t, target)
	target.Discovery = false
	result, _ := probeAgain(t, target, known)
	if f := result.Facts; f.Systems != nil || f.Features != nil || f.MaxJobs != 0 || f.Cores != 0 || f.NixVersion == "" {
		t.Errorf("got %+v", f)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	many := make([]string, 2*maxNames)
	for i := range many {
		many[i] = fmt.Sprint("f", i)
	}
	if got := names(many...); len(got) != maxNames {
		t.Errorf("%d names", len(got))
	}
	if diff := cmp.Diff([]string{"a", "b"}, names(" a ", "b", "a", "", "c'", `d"`, "e;", "ü")); diff != "" {
		t.Error(diff)
	}
}

// FuzzBuilderAnswers: whatever a builder prints, what is kept of it is bounded and made
// of names.
func FuzzBuilderAnswers(f *testing.F) {
	f.Add(versionOutput)
	f.Add(configOutput)
	f.Add("nix-store\nSystem type: \nAdditional system types: ,,")
	f.Add(`{"system":{"value":"\u0000"},"extra-platforms":{"value":null}}`)
	f.Fuzz(func(t *testing.T, text string) {
		var found offer
		_, found.systems, _ = parseVersionOutput([]byte(text))
		kept := [][]string{found.systems}
		if found.readConfig([]byte(text)) {
			kept = append(kept, found.systems, found.features)
		}
		for _, list := range kept {
			for _, name := range list {
				if len(name) == 0 || len(name) > maxName || strings.ContainsAny(name, " ,;\n\"'") {
					t.Errorf("kept %q", name)
				}
			}
		}
		if len(found.systems) > maxNames || len(found.features) > maxNames || found.maxJobs < 0 || found.cores < 0 {
			t.Errorf("kept %+v", found)
		}
		if words := lastWords(text); strings.Contains(words, "\n") {
			t.Errorf("last words %q", words)
		}
	})
}
