// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

func TestCheckHealthy(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{Exec: newNix(t, daemontest.Options{}).exec})
	target := targetFor(t, server)
	result, _ := probeOnce(t, target)
	var got []string
	for _, outcome := range result.Outcomes {
		got = append(got, string(outcome.Step)+"="+string(outcome.Status)+" "+string(outcome.Reason))
		t.Logf("%s: %s", outcome.Reason, outcome.Message)
	}
	want := []string{
		"Reachable=True Connected", "HostKeyVerified=True HostKeyMatches", "Authenticated=True LoggedIn",
		"NixAvailable=True NixDaemonAnswers", "Trusted=True UserTrusted",
		"MachineFit=True MachineFit", "SystemsVerified=True SystemsVerified",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	wantFacts := Facts{
		NixVersion: "2.34.8", ProtocolVersion: "1.35", Trust: Trusted,
		Systems:  []string{"x86_64-linux", "i686-linux", "x86_64-v1-linux"},
		Features: []string{"benchmark", "big-parallel", "nixos-test"}, MaxJobs: 4, Cores: 8,
		HostKey:            sshconn.AuthorizedKey(server.HostKey()),
		HostKeyFingerprint: sshconn.Fingerprint(server.HostKey()), Credential: "builder-key",
	}
	if diff := cmp.Diff(wantFacts, result.Facts); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	if result.Duration <= 0 || time.Since(result.Started) > time.Minute {
		t.Errorf("started %v, took %v", result.Started, result.Duration)
	}
}

// sshFault is a way in which an SSH server, or the target's own data, fails.
type sshFault struct {
	behavior   sshtest.Behavior
	change     func(*Target)
	slow       bool // waits for a time-out
	spoken     bool // answered before
	wantStep   Step
	wantReason Reason
	wantWords  []string
}

func (f sshFault) meet(t *testing.T) {
	t.Parallel()
	target := targetFor(t, sshtest.New(t, f.behavior))
	if f.slow {
		target.Timeout = shortTimeout
	}
	if f.change != nil {
		f.change(&target)
	}
	result, _ := probeAgain(t, target, knowledge{spoken: f.spoken})
	expectFailure(t, result, f.wantStep, f.wantReason, f.wantWords...)
}

// TestHandshakeFaults: there is no SSH connection.
func TestHandshakeFaults(t *testing.T) {
	t.Parallel()
	tests := map[string]sshFault{
		"hangs up": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultHangUp},
			wantStep: StepReachable, wantReason: ReasonTurnedAway, wantWords: []string{"MaxStartups", "PerSourcePenalty"},
		},
		"silent": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultSilent}, slow: true, spoken: true,
			wantStep: StepReachable, wantReason: ReasonSSHSilent, wantWords: []string{"host and port"},
		},
		"dead from the start": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultDead}, slow: true,
			wantStep: StepReachable, wantReason: ReasonSSHSilent,
		},
		"dead after it has answered": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultDead}, slow: true, spoken: true,
			wantStep: StepReachable, wantReason: ReasonSSHStopped, wantWords: []string{"stopped"},
		},
		"HTTP": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultText, Text: "HTTP/1.1 400 Bad Request\r\n\r\n"},
			wantStep: StepReachable, wantReason: ReasonNotSSH, wantWords: []string{"HTTP/1.1 400 Bad Request"},
		},
		"stops before the key exchange": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultStopBeforeKex}, slow: true,
			wantStep: StepReachable, wantReason: ReasonHandshakeTimeout, wantWords: []string{"3s"},
		},
		"hangs up at the key exchange": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultHangUpAtKex},
			wantStep: StepReachable, wantReason: ReasonHandshakeFailed,
		},
		"old algorithms": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultOldAlgorithms},
			wantStep: StepReachable, wantReason: ReasonNoCommonAlgorithm, wantWords: []string{"key exchange algorithm"},
		},
	}
	for name, tc := range tests {
		t.Run(name, tc.meet)
	}
}

// TestLoginFaults: the login fails, or sshd runs nothing after it.
func TestLoginFaults(t *testing.T) {
	t.Parallel()
	tests := map[string]sshFault{
		"stops at login": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultStopAtLogin}, slow: true,
			wantStep: StepAuthenticated, wantReason: ReasonAuthTimeout,
		},
		"hangs up at login": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultHangUpAtLogin},
			wantStep: StepAuthenticated, wantReason: ReasonAuthDropped, wantWords: []string{"MaxAuthTries"},
		},
		"key refused": {
			behavior: sshtest.Behavior{AuthorizedKeys: []ssh.PublicKey{}},
			wantStep: StepAuthenticated, wantReason: ReasonAuthRefused,
			wantWords: []string{"builder-key", "~nixt/.ssh/authorized_keys"},
		},
		"passwords only": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultPasswordOnly},
			wantStep: StepAuthenticated, wantReason: ReasonAuthRefused, wantWords: []string{"only: password"},
		},
		"no sessions": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultRefuseSessions},
			wantStep: StepNixAvailable, wantReason: ReasonSessionRefused, wantWords: []string{"MaxSessions", "open failed"},
		},
		"session stops": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultStopAtSession}, slow: true,
			wantStep: StepNixAvailable, wantReason: ReasonSessionTimeout,
		},
		"command stops": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultStopAtExec}, slow: true,
			wantStep: StepNixAvailable, wantReason: ReasonSessionTimeout,
		},
		"no commands": {
			behavior: sshtest.Behavior{Fault: sshtest.FaultRefuseExec},
			wantStep: StepNixAvailable, wantReason: ReasonCommandRefused, wantWords: []string{"ForceCommand"},
		},
		"no credential": {
			change:   func(t *Target) { t.Credentials = nil },
			wantStep: StepAuthenticated, wantReason: ReasonNoCredential,
		},
		"malformed key": {
			change:   func(t *Target) { t.Credentials[0].PrivateKey = Secret("swordfish") },
			wantStep: StepAuthenticated, wantReason: ReasonKeyMalformed, wantWords: []string{"builder-key"},
		},
	}
	for name, tc := range tests {
		t.Run(name, tc.meet)
	}
}

// TestHostKeyFaults: the host cannot prove to be the one meant.
func TestHostKeyFaults(t *testing.T) {
	t.Parallel()
	tests := map[string]sshFault{
		"host key of another type": {
			change:   func(t *Target) { t.HostKeys = []string{rsaLine} },
			wantStep: StepHostKeyVerified, wantReason: ReasonHostKeyType, wantWords: []string{"SHA256:"},
		},
		"host key unknown": {
			change:   func(t *Target) { t.HostKeys = nil },
			wantStep: StepHostKeyVerified, wantReason: ReasonHostKeyUnknown, wantWords: []string{"ssh-ed25519 AAAA", "ssh-keygen -lf"},
		},
		"host key malformed": {
			change:   func(t *Target) { t.HostKeys = append(t.HostKeys, "SHA256:abc") },
			wantStep: StepHostKeyVerified, wantReason: ReasonHostKeyMalformed, wantWords: []string{"hostKeys[1]"},
		},
		"authority malformed": {
			change:   func(t *Target) { t.CertificateAuthorities = []string{"x"} },
			wantStep: StepHostKeyVerified, wantReason: ReasonHostKeyMalformed, wantWords: []string{"hostCertificateAuthorities[0]"},
		},
	}
	for name, tc := range tests {
		t.Run(name, tc.meet)
	}
}

// rsaLine is a public key of nobody.
const rsaLine = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7vbqajDw4o6gJy8UtmIbkcpnkO3Kwc4qsEnSZp/TR+fQi62F79RHWmwKOtFmwteURgLbj7D/WGuNLGOfa/2vse3G2eHnHl5CB8ruRX9fBl/KgwCVr2JaEuUm66bBQeP5XeBotdR4cvX38uPYivCDdPjJ1QWPdspTBKcxeFbccDw=="

// TestCheckConnectFaults covers what happens before anything answers.
func TestCheckConnectFaults(t *testing.T) {
	t.Parallel()
	network := sshtest.NewNetwork()
	network.BlackHole("10.0.0.5:22")
	network.UnknownName("mac-9:22")
	tests := map[string]struct {
		host       string
		dial       sshconn.DialFunc
		wantReason Reason
		wantWords  []string
	}{
		"refused":    {"10.0.0.6", network.Dial, ReasonConnectionRefused, []string{"mac-2 (10.0.0.6:22)", "start sshd"}},
		"black hole": {"10.0.0.5", network.Dial, ReasonConnectTimeout, []string{"firewall"}},
		"name":       {"mac-9", network.Dial, ReasonNameUnknown, []string{"\"mac-9\""}},
		"denied":     {"127.0.0.1", sshconn.NewDialer(sshconn.DefaultDenied()), ReasonAddressDenied, []string{"127.0.0.0/8"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, _ := sshtest.NewKeyFile(t)
			target := Target{
				Endpoint: "mac-2", Host: tc.host, User: "nixt", Timeout: shortTimeout, TrustOnFirstUse: true,
				Credentials: []Credential{{Name: "k", PrivateKey: key}},
			}.withDefaults()
			c := &checker{dial: tc.dial, gate: newGate(1)}
			result, _, err := c.check(t.Context(), &target, knowledge{})
			if err != nil {
				t.Fatal(err)
			}
			expectFailure(t, result, StepReachable, tc.wantReason, tc.wantWords...)
		})
	}
}

// TestHostKeyChanged: both fingerprints are named, nothing is sent to the host, and
// what was known of the builder before stays known.
func TestHostKeyChanged(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{Exec: newNix(t, daemontest.Options{}).exec})
	target := targetFor(t, server)
	before, known := probeOnce(t, target)
	impostor := sshtest.NewKey(t)
	server.Set(sshtest.Behavior{HostKeys: []ssh.Signer{impostor}, Exec: func(string, sshtest.Stdio) int {
		t.Error("a command reached the impostor")
		return 1
	}})
	result, _ := probeAgain(t, target, known)
	seen := sshconn.Fingerprint(impostor.PublicKey())
	expectFailure(t, result, StepHostKeyVerified, ReasonHostKeyChanged, seen, sshconn.Fingerprint(server.HostKey()), "hostKeys")
	want := before.Facts
	want.OfferedHostKey, want.OfferedHostKeyFingerprint = sshconn.AuthorizedKey(impostor.PublicKey()), seen
	if diff := cmp.Diff(want, result.Facts); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

func TestTrustOnFirstUse(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{Exec: newNix(t, daemontest.Options{}).exec})
	target := targetFor(t, server)
	target.HostKeys, target.TrustOnFirstUse = nil, true
	target.builder = Key{Namespace: "ci", Name: "mac"}
	result, known := probeOnce(t, target)
	if got := result.Outcome(StepHostKeyVerified); got.Reason != ReasonHostKeyFirstUse {
		t.Errorf("first: %+v", got)
	}
	result, known = probeAgain(t, target, known)
	if got := result.Outcome(StepHostKeyVerified); got.Reason != ReasonHostKeyMatches {
		t.Errorf("second: %+v", got)
	}
	other := sshtest.NewKey(t)
	server.Set(sshtest.Behavior{HostKeys: []ssh.Signer{other}})
	result, _ = probeAgain(t, target, known)
	expectFailure(t, result, StepHostKeyVerified, ReasonHostKeyChanged,
		`"kubectl -n ci annotate --overwrite nixbuilder mac nixbuilder.io/accept-host-key=mac-2=`+sshconn.Fingerprint(other.PublicKey())+`"`)
}

// TestFirstUsePinsBeforeLogin: as with OpenSSH, a refused login does not undo that
// the host key was seen.
func TestFirstUsePinsBeforeLogin(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{AuthorizedKeys: []ssh.PublicKey{}})
	target := targetFor(t, server)
	target.HostKeys, target.TrustOnFirstUse = nil, true
	result, known := probeOnce(t, target)
	expectFailure(t, result, StepAuthenticated, ReasonAuthRefused)
	if known.firstKey != sshconn.AuthorizedKey(server.HostKey()) || result.Facts.HostKey != known.firstKey {
		t.Errorf("pinned %q, facts %+v", known.firstKey, result.Facts)
	}
}

func TestHostCertificate(t *testing.T) {
	t.Parallel()
	authority, key := sshtest.NewKey(t), sshtest.NewKey(t)
	certified := func(principal string, valid time.Duration) ssh.Signer {
		return sshtest.Certified(t, sshtest.NewCertificate(t, authority, sshtest.Certificate{
			Type: ssh.HostCert, Key: key.PublicKey(), Principals: []string{principal},
			ValidBefore: time.Now().Add(valid),
		}), key)
	}
	tests := map[string]struct {
		host       ssh.Signer
		authority  ssh.Signer
		wantReason Reason
	}{
		"valid":             {certified("127.0.0.1", time.Hour), authority, ""},
		"expired":           {certified("127.0.0.1", -time.Minute), authority, ReasonHostCertExpired},
		"other name":        {certified("mac-1", time.Hour), authority, ReasonHostCertPrincipal},
		"unknown authority": {certified("127.0.0.1", time.Hour), key, ReasonHostCertAuthority},
		"none":              {key, authority, ReasonHostCertMissing},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := sshtest.New(t, sshtest.Behavior{
				HostKeys: []ssh.Signer{tc.host}, Exec: newNix(t, daemontest.Options{}).exec,
			})
			target := targetFor(t, server)
			target.HostKeys = nil
			target.CertificateAuthorities = []string{sshconn.AuthorizedKey(tc.authority.PublicKey())}
			result, _ := probeOnce(t, target)
			if tc.wantReason != "" {
				expectFailure(t, result, StepHostKeyVerified, tc.wantReason)
				return
			}
			if failure, failed := result.Failure(); failed {
				t.Errorf("failed: %+v", failure)
			}
		})
	}
}

// TestCredentialOrder: with overlapping rotation the one that works is named, and an
// unusable one does not spoil the other.
func TestCredentialOrder(t *testing.T) {
	t.Parallel()
	file, public := sshtest.NewKeyFile(t)
	other, _ := sshtest.NewKeyFile(t)
	server := sshtest.New(t, sshtest.Behavior{
		AuthorizedKeys: []ssh.PublicKey{public}, Exec: newNix(t, daemontest.Options{}).exec,
	})
	target := targetFor(t, server)
	target.Credentials = []Credential{
		{Name: "locked", PrivateKey: sshtest.NewLockedKeyFile(t)},
		{Name: "old", PrivateKey: other},
		{Name: "new", PrivateKey: file},
	}
	result, _ := probeOnce(t, target)
	if failure, failed := result.Failure(); failed || result.Facts.Credential != "new" {
		t.Errorf("credential %q, %+v", result.Facts.Credential, failure)
	}
}

// TestRefusedWithoutListener uses a port that is really closed.
func TestRefusedWithoutListener(t *testing.T) {
	t.Parallel()
	server := sshtest.New(t, sshtest.Behavior{})
	target := targetFor(t, server)
	server.Close()
	if conn, err := net.Dial("tcp", server.Addr()); err == nil {
		_ = conn.Close()
		t.Skip("the port was taken by somebody else")
	}
	result, _ := probeOnce(t, target)
	expectFailure(t, result, StepReachable, ReasonConnectionRefused, server.Addr())
}
