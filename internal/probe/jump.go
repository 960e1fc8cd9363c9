// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// Jump is an SSH server through which an endpoint is reached. Its host key must be one
// that is given: there is no trust on first use.
type Jump struct {
	Host string
	// Port is DefaultPort where it is zero.
	Port int
	User string
	// HostKeys and CertificateAuthorities are public key lines.
	HostKeys               []string
	CertificateAuthorities []string
	// Credentials are tried in order.
	Credentials []Credential
}

// Address is host:port.
func (j *Jump) Address() string {
	port := j.Port
	if port == 0 {
		port = DefaultPort
	}
	return net.JoinHostPort(j.Host, strconv.Itoa(port))
}

// sameJump tells whether two targets are reached in the same way.
func sameJump(a, b *Jump) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Address() == b.Address() && a.User == b.User &&
		slices.Equal(a.HostKeys, b.HostKeys) && slices.Equal(a.CertificateAuthorities, b.CertificateAuthorities)
}

// credentials of a jump host that may not be there.
func (j *Jump) credentials() []Credential {
	if j == nil {
		return nil
	}
	return j.Credentials
}

// hop is what it takes to log in to the jump host.
type hop struct {
	policy sshconn.HostKeyPolicy
	keys   signers
	login  loginID
	// passed gives the place at the gate back, once the login is over.
	passed func()
}

// prepareHop reads keys and credentials of the target's jump host, if it has one.
func prepareHop(r *report) bool {
	jump := r.target.Jump
	if jump == nil {
		return true
	}
	h := &hop{passed: func() {}}
	var ok bool
	if h.policy.Pinned, ok = parseKeys(r, "proxyJump.hostKeys", jump.HostKeys); !ok {
		return false
	}
	if h.policy.Authorities, ok = parseKeys(r, "proxyJump.hostCertificateAuthorities", jump.CertificateAuthorities); !ok {
		return false
	}
	if h.keys = parseCredentials(jump.Credentials, time.Now()); len(h.keys.list) == 0 {
		r.fail(StepAuthenticated, h.keys.reason, r.target.says("for the jump host: %s", h.keys.message))
		return false
	}
	h.login = jump.loginID(h.keys)
	r.hop = h
	return true
}

// enter waits until nobody else connects to the host that is connected to first: the
// jump host, where there is one. That is given back with the login there, so that
// machines behind it which do not answer keep nobody waiting; what follows comes one
// after the other all the same.
func (c *checker) enter(ctx context.Context, r *report) (release func(), err error) {
	if r.hop == nil {
		return c.gate.host(ctx, r.target.Host)
	}
	release, err = c.gate.jumpHost(ctx, r.target.Jump.Host)
	r.hop.passed = release
	return release, err
}

// throughHop completes config where there is a jump host. Its handshake takes a turn
// at the gate, too.
func (c *checker) throughHop(r *report, config sshconn.Config) sshconn.Config {
	h, jump := r.hop, r.target.Jump
	if h == nil {
		return config
	}
	var turn atomic.Pointer[func()]
	config.Jump = &sshconn.Config{
		Address: jump.Address(), User: jump.User, Signers: h.keys.list, HostKeys: h.policy,
		NetDial: config.NetDial, Timeout: config.Timeout,
		AwaitTurn: func(ctx context.Context) error {
			release, err := c.gate.turn(ctx)
			if err == nil {
				turn.Store(&release)
			}
			return err
		},
		OnStep: func(step sshconn.Step) {
			if step != sshconn.StepEstablished {
				return
			}
			c.refusals.forget(h.login)
			h.passed()
			if release := turn.Load(); release != nil {
				(*release)()
			}
		},
	}
	return config
}

// jumpFailedAt maps a failure to get through the jump host to a step and its reason.
func jumpFailedAt(e *sshconn.Error) (Step, Reason) {
	switch step, reason := failedAt(e, false); {
	case step == StepHostKeyVerified:
		return step, ReasonJumpHostKey
	case reason == ReasonAuthRefused, reason == ReasonSigningFailed:
		return step, ReasonJumpLoginRefused
	case step == StepAuthenticated:
		return step, ReasonJumpLoginFailed
	default:
		return StepReachable, ReasonJumpUnreachable
	}
}

// notJumped notes why the jump host is in the way. Nothing is known of the machine
// behind it then.
func (c *checker) notJumped(ctx context.Context, r *report, e *sshconn.Error) {
	step, reason := jumpFailedAt(e)
	if step == StepHostKeyVerified && e.Seen == nil && len(r.hop.policy.Pinned) > 0 {
		// As with machines: it is asked once more, so that people see which key it has.
		config := c.throughHop(r, sshconn.Config{NetDial: c.dial, Timeout: r.target.Timeout}).Jump
		config.HostKeys = sshconn.HostKeyPolicy{}
		_, err := sshconn.Dial(ctx, *config)
		var again *sshconn.Error
		if errors.As(err, &again) {
			e.Seen = again.Seen
		}
	}
	r.fail(step, reason, messageJump(r, reason, e))
}
