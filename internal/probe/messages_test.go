// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// messageOf renders the message of a reason with everything that can go into it.
func messageOf(tb testing.TB, t *Target, entry Entry, text string) string {
	tb.Helper()
	failure := &sshconn.Error{
		Detail: text, Seen: sshtest.NewKey(tb).PublicKey(), Expected: []string{"SHA256:a", "SHA256:b"},
	}
	switch {
	case strings.HasPrefix(string(entry.Reason), "JumpHost"):
		return jumpMessageOf(t, entry.Reason, failure)
	case entry.Reason == ReasonConnected:
		return messageConnected(t)
	case entry.Reason == ReasonHostKeyMatches || entry.Reason == ReasonHostKeyFirstUse:
		return messageHostKeyVerified(t, entry.Reason, "SHA256:a")
	case entry.Reason == ReasonHostKeyMalformed:
		return messageHostKeyMalformed(t, "hostKeys", 3)
	case entry.Reason == ReasonAuthenticated:
		return messageLoggedIn(t, "key")
	case entry.Reason == ReasonNixAnswers:
		return messageNixAnswers(t, &Facts{NixVersion: text, ProtocolVersion: "1.35"})
	case entry.Step == StepReachable:
		return messageReachable(t, entry.Reason, failure, false)
	case entry.Step == StepHostKeyVerified:
		return messageHostKey(t, entry.Reason, failure)
	case entry.Step == StepAuthenticated && strings.HasPrefix(string(entry.Reason), "Log"), entry.Reason == ReasonSigningFailed:
		return messageLogin(t, entry.Reason, []string{"a", "b"}, text)
	case entry.Step == StepAuthenticated:
		return t.says("%s", messageCredential("key", entry.Reason))
	case entry.Step == StepNixAvailable:
		return messageNix(t, nixFailure{reason: entry.Reason, status: "exit status 1", text: text})
	case entry.Step == StepTrusted:
		return messageTrust(t, entry.Reason)
	case entry.Step == StepMachineFit:
		return messageMachine(t, entry.Reason, []string{text})
	case entry.Reason == ReasonFeaturesRefuted:
		return messageFeaturesRefuted(t, []string{"kvm"}, text)
	case entry.Reason == ReasonCanaryInconclusive:
		return messageCanary(t, []canaryVerdict{inconclusive("x86_64-linux", quoted(text, ""))})
	case entry.Reason == ReasonSystemsRefuted:
		return messageCanary(t, []canaryVerdict{{system: "aarch64-linux", status: StatusFalse, cause: causeEmulation, text: text}})
	case entry.Reason == ReasonCanaryFailed:
		return messageCanary(t, []canaryVerdict{{system: "x86_64-linux", status: StatusFalse, text: text}})
	default:
		return messageSystems(t, entry.Reason, []string{"kvm"}, []string{text})
	}
}

// TestMessages renders the message of every reason: they name the endpoint, differ
// from each other, and neither an endless text of the builder nor an endless name
// makes them too long.
func TestMessages(t *testing.T) {
	t.Parallel()
	short := Target{Endpoint: "mac-2", Host: "10.0.0.5", User: "nixt", Timeout: time.Second, Port: 22}
	long := short
	long.Host, long.RemoteProgram = strings.Repeat("ü", 700), "/"+strings.Repeat("x", 4000)
	texts := map[string]Reason{}
	for _, entry := range Catalogue() {
		message := messageOf(t, &short, entry, "TEXT")
		if !strings.HasPrefix(message, "mac-2 (10.0.0.5:22") {
			t.Errorf("%s: %q does not say which endpoint", entry.Reason, message)
		}
		if strings.Contains(message, "%!") {
			t.Errorf("%s: %q", entry.Reason, message)
		}
		if other := texts[message]; other != "" {
			t.Errorf("%s and %s have one message: %q", entry.Reason, other, message)
		}
		texts[message] = entry.Reason
		message = clip(messageOf(t, &long, entry, strings.Repeat("long\x00 ", 1000)))
		if len(message) > MaxMessage || !utf8.ValidString(message) {
			t.Errorf("%s: %d bytes, valid %v", entry.Reason, len(message), utf8.ValidString(message))
		}
	}
}

// TestLikelierAdviceFirst: a port that an SSH server answered on before is right.
func TestLikelierAdviceFirst(t *testing.T) {
	t.Parallel()
	target := Target{Endpoint: "mac-2", Host: "10.0.0.5", Port: 22}
	before := messageReachable(&target, ReasonConnectionRefused, &sshconn.Error{}, true)
	never := messageReachable(&target, ReasonConnectionRefused, &sshconn.Error{}, false)
	if strings.Contains(before, "spec.endpoints[].port") || !strings.Contains(before, "start it") {
		t.Errorf("answered before: %q", before)
	}
	if !strings.Contains(never, "spec.endpoints[].port") {
		t.Errorf("never answered: %q", never)
	}
}

func TestSecretsAreNamedInASentence(t *testing.T) {
	t.Parallel()
	target := Target{Endpoint: "mac-2", Host: "10.0.0.5", Port: 22, User: "nixt"}
	for want, names := range map[string][]string{
		"the key of Secret one; ":        {"one"},
		"the keys of Secrets one, two; ": {"one", "two"},
	} {
		if got := messageLogin(&target, ReasonAuthRefused, names, ""); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestClip(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ text, want string }{
		"short":    {"a", "a"},
		"fits":     {strings.Repeat("a", MaxMessage), strings.Repeat("a", MaxMessage)},
		"too long": {strings.Repeat("a", MaxMessage+1), strings.Repeat("a", MaxMessage-3) + "…"},
		// 1021 bytes have room for 510 two-byte characters.
		"wide": {strings.Repeat("ü", MaxMessage), strings.Repeat("ü", 510) + "…"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := clip(tc.text); got != tc.want {
				t.Errorf("got %d bytes, want %d", len(got), len(tc.want))
			}
		})
	}
}

func TestWho(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		target Target
		want   string
	}{
		"named": {Target{Endpoint: "mac-2", Host: "mac", Port: 2222}, "mac-2 (mac:2222)"},
		"IPv6":  {Target{Endpoint: "a", Host: "fd00::1", Port: 22}, "a ([fd00::1]:22)"},
		"bare":  {Target{Host: "mac", Port: 22}, "mac:22"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tc.target.who(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
