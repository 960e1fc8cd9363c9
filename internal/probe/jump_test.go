// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// jumpMessageOf is messageOf for reasons about jump hosts.
func jumpMessageOf(t *Target, reason Reason, e *sshconn.Error) string {
	behind := *t
	behind.Jump = &Jump{Host: "jump.example", User: "hop"}
	r := &report{target: &behind, hop: &hop{keys: signers{names: []string{"jump-key"}}}}
	switch reason {
	case ReasonJumpForwarding:
		return messageForward(&behind, reason, e)
	case ReasonJumpLoginRefused:
		e.Kind = sshconn.KindAuthRefused
	}
	return messageJump(r, reason, e)
}

// direct passes connections on to where they want to go.
func direct(address string) (net.Conn, error) { return net.Dial("tcp", address) }

// jumpFor describes a server as a jump host.
func jumpFor(tb testing.TB, server *sshtest.Server) *Jump {
	tb.Helper()
	target := targetFor(tb, server)
	return &Jump{
		Host: target.Host, Port: target.Port, User: "hop",
		HostKeys:    target.HostKeys,
		Credentials: []Credential{{Name: "jump-key", PrivateKey: target.Credentials[0].PrivateKey}},
	}
}

func TestProbeThroughJumpHost(t *testing.T) {
	t.Parallel()
	jump := sshtest.New(t, sshtest.Behavior{Forward: direct, Users: []string{"hop"}})
	target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: newNix(t, daemontest.Options{}).exec, Users: []string{"nixt"}}))
	target.Jump = jumpFor(t, jump)
	result, known := probeOnce(t, target)
	if failure, failed := result.Failure(); failed {
		t.Fatalf("%+v", failure)
	}
	if got := result.Outcome(StepReachable).Message; !strings.Contains(got, "behind "+jump.Addr()) {
		t.Errorf("message %q does not name the jump host", got)
	}
	if result.Facts.HostKey != target.HostKeys[0] || result.Facts.Credential != "builder-key" {
		t.Errorf("facts are about something else: %+v", result.Facts)
	}
	if jump.Accepted() != 1 {
		t.Errorf("%d connections to the jump host", jump.Accepted())
	}
	// The builder is known to be well; now the jump host is in the way.
	jump.Set(sshtest.Behavior{Fault: sshtest.FaultHangUp})
	result, _ = probeAgain(t, target, known)
	expectFailure(t, result, StepReachable, ReasonJumpUnreachable, "behind "+jump.Addr(), "MaxStartups")
	if result.Facts.HostKey == "" {
		t.Error("the facts about the builder are forgotten")
	}
}

// TestJumpHostFaults breaks one thing at a time on the way through a jump host.
func TestJumpHostFaults(t *testing.T) {
	t.Parallel()
	failing := func(text string) sshtest.Behavior {
		return sshtest.Behavior{Forward: func(string) (net.Conn, error) { return nil, errors.New(text) }}
	}
	authority, ecdsa, locked := sshtest.NewKey(t), sshtest.NewECDSAKey(t), sshtest.NewLockedKeyFile(t)
	certified := func(c sshtest.Certificate) sshtest.Behavior {
		key := sshtest.NewKey(t)
		c.Key, c.Type = key.PublicKey(), ssh.HostCert
		return sshtest.Behavior{Forward: direct, HostKeys: []ssh.Signer{sshtest.Certified(t, sshtest.NewCertificate(t, authority, c), key)}}
	}
	byAuthority := func(t *Target) {
		t.Jump.HostKeys = nil
		t.Jump.CertificateAuthorities = []string{sshconn.AuthorizedKey(authority.PublicKey())}
	}
	tests := map[string]struct {
		jump       sshtest.Behavior
		change     func(*Target)
		wantStep   Step
		wantReason Reason
		wantWords  []string
	}{
		"nothing listens": {
			change:   func(t *Target) { t.Jump.Port = 1 },
			wantStep: StepReachable, wantReason: ReasonJumpUnreachable, wantWords: []string{"start sshd", "spec.proxyJump.port"},
		},
		"not SSH": {
			jump:     sshtest.Behavior{Fault: sshtest.FaultText, Text: "HTTP/1.1 400\r\n"},
			wantStep: StepReachable, wantReason: ReasonJumpUnreachable, wantWords: []string{"HTTP/1.1 400", "spec.proxyJump"},
		},
		"old": {
			jump:     sshtest.Behavior{Fault: sshtest.FaultOldAlgorithms},
			wantStep: StepReachable, wantReason: ReasonJumpUnreachable, wantWords: []string{"key exchange", "update it"},
		},
		"breaks off": {
			jump:     sshtest.Behavior{Fault: sshtest.FaultHangUpAtKex},
			wantStep: StepReachable, wantReason: ReasonJumpUnreachable, wantWords: []string{"breaks off", "log"},
		},
		"silent": {
			jump: sshtest.Behavior{Fault: sshtest.FaultSilent}, change: func(t *Target) { t.Timeout = shortTimeout },
			wantStep: StepReachable, wantReason: ReasonJumpUnreachable, wantWords: []string{"no SSH server speaks there"},
		},
		"another key": {
			change:   func(t *Target) { t.Jump.HostKeys = t.HostKeys },
			wantStep: StepHostKeyVerified, wantReason: ReasonJumpHostKey, wantWords: []string{"CHANGED", "expected SHA256:", "spec.proxyJump.hostKeys: ssh-ed25519 "},
		},
		"a key of another type": {
			change:   func(t *Target) { t.Jump.HostKeys = []string{sshconn.AuthorizedKey(ecdsa.PublicKey())} },
			wantStep: StepHostKeyVerified, wantReason: ReasonJumpHostKey, wantWords: []string{"no key of the expected type", "spec.proxyJump.hostKeys: ssh-ed25519 "},
		},
		"no key given": {
			change:   func(t *Target) { t.Jump.HostKeys = nil },
			wantStep: StepHostKeyVerified, wantReason: ReasonJumpHostKey, wantWords: []string{"no host key is given"},
		},
		"no certificate": {
			change:   byAuthority,
			wantStep: StepHostKeyVerified, wantReason: ReasonJumpHostKey, wantWords: []string{"presents no certificate"},
		},
		"certificate for another": {
			jump: certified(sshtest.Certificate{Principals: []string{"other.example"}}), change: byAuthority,
			wantStep: StepHostKeyVerified, wantReason: ReasonJumpHostKey, wantWords: []string{"other.example", "ssh-keygen -h -n 127.0.0.1"},
		},
		"certificate expired": {
			jump: certified(sshtest.Certificate{ValidBefore: time.Now().Add(-time.Minute)}), change: byAuthority,
			wantStep: StepHostKeyVerified, wantReason: ReasonJumpHostKey, wantWords: []string{"expired at"},
		},
		"certificate early": {
			jump: certified(sshtest.Certificate{ValidAfter: time.Now().Add(time.Hour)}), change: byAuthority,
			wantStep: StepHostKeyVerified, wantReason: ReasonJumpHostKey, wantWords: []string{"not valid before"},
		},
		"certificate with options": {
			jump: certified(sshtest.Certificate{Critical: map[string]string{"x": "y"}}), change: byAuthority,
			wantStep: StepHostKeyVerified, wantReason: ReasonJumpHostKey, wantWords: []string{"not usable"},
		},
		"certificate of another authority": {
			jump: certified(sshtest.Certificate{}), change: func(t *Target) {
				t.Jump.CertificateAuthorities, t.Jump.HostKeys = t.HostKeys, nil
			},
			wantStep: StepHostKeyVerified, wantReason: ReasonJumpHostKey, wantWords: []string{"signed by"},
		},
		"malformed key": {
			change:   func(t *Target) { t.Jump.HostKeys = []string{"nonsense"} },
			wantStep: StepHostKeyVerified, wantReason: ReasonHostKeyMalformed, wantWords: []string{"proxyJump.hostKeys[0]"},
		},
		"malformed authority": {
			change:   func(t *Target) { t.Jump.CertificateAuthorities = []string{"nonsense"} },
			wantStep: StepHostKeyVerified, wantReason: ReasonHostKeyMalformed, wantWords: []string{"proxyJump.hostCertificateAuthorities[0]"},
		},
		"login refused": {
			jump:     sshtest.Behavior{Users: []string{"somebody"}, Forward: direct},
			wantStep: StepAuthenticated, wantReason: ReasonJumpLoginRefused, wantWords: []string{"as hop with the key of Secret jump-key", "add \"restrict,port-forwarding ssh-ed25519 AAAA", "~hop/.ssh/authorized_keys", "spec.proxyJump.user"},
		},
		"login dropped": {
			jump:     sshtest.Behavior{Fault: sshtest.FaultHangUpAtLogin},
			wantStep: StepAuthenticated, wantReason: ReasonJumpLoginFailed, wantWords: []string{"MaxStartups"},
		},
		"login unanswered": {
			jump: sshtest.Behavior{Fault: sshtest.FaultStopAtLogin}, change: func(t *Target) { t.Timeout = shortTimeout },
			wantStep: StepAuthenticated, wantReason: ReasonJumpLoginFailed, wantWords: []string{"does not answer the login as hop within 3s"},
		},
		"key locked": {
			change:   func(t *Target) { t.Jump.Credentials[0].PrivateKey = locked },
			wantStep: StepAuthenticated, wantReason: ReasonKeyPassphrase, wantWords: []string{"for the jump host: Secret jump-key", "ssh-keygen -p"},
		},
		"no key": {
			change:   func(t *Target) { t.Jump.Credentials = nil },
			wantStep: StepAuthenticated, wantReason: ReasonNoCredential, wantWords: []string{"for the jump host"},
		},
		"forwarding refused": {
			jump:     sshtest.Behavior{Forward: func(string) (net.Conn, error) { return nil, sshtest.Prohibited() }},
			wantStep: StepReachable, wantReason: ReasonJumpForwarding, wantWords: []string{"AllowTcpForwarding", "PermitOpen 127.0.0.1:"},
		},
		"name unknown there": {
			jump:     failing("Name or service not known"),
			wantStep: StepReachable, wantReason: ReasonNameUnknown, wantWords: []string{"the jump host", "its DNS"},
		},
		"lookup fails there": {
			jump:     failing("Temporary failure in name resolution"),
			wantStep: StepReachable, wantReason: ReasonNameLookupFailed, wantWords: []string{"the jump host", "its DNS"},
		},
		"refused there": {
			jump:     failing("Connection refused"),
			wantStep: StepReachable, wantReason: ReasonConnectionRefused, wantWords: []string{"the jump host's connection", "start sshd"},
		},
		"no answer there": {
			jump:     failing("Connection timed out"),
			wantStep: StepReachable, wantReason: ReasonConnectTimeout, wantWords: []string{"the jump host gets no answer"},
		},
		"no route there": {
			jump:     failing("No route to host"),
			wantStep: StepReachable, wantReason: ReasonUnreachable, wantWords: []string{"No route to host"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.jump.Fault == sshtest.FaultNone && tc.jump.Forward == nil {
				tc.jump.Forward = direct
			}
			target := targetFor(t, sshtest.New(t, sshtest.Behavior{Exec: newNix(t, daemontest.Options{}).exec}))
			target.Jump = jumpFor(t, sshtest.New(t, tc.jump))
			if tc.change != nil {
				tc.change(&target)
			}
			result, _ := probeOnce(t, target)
			expectFailure(t, result, tc.wantStep, tc.wantReason, append(tc.wantWords, "behind "+target.Jump.Address())...)
		})
	}
}
