// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// knowledge is what is remembered of an endpoint from probe to probe.
type knowledge struct {
	// facts are the last ones known; a probe that does not get far keeps them.
	facts Facts
	// firstKey is the host key line pinned on first use, here or before.
	firstKey string
	// spoken: an SSH server answered there before.
	spoken bool
	// offer is what the builder said it offers, taken as current for a while.
	offer      *offer
	offerUntil time.Time
	// canaries are the builds done there.
	canaries canaries
	// fitness is how the machine kept to its thresholds.
	fitness fitness
	// conn is the connection of the probe that just ended, where it is to be kept.
	conn idleConn
}

// checker runs single probes.
type checker struct {
	dial   sshconn.DialFunc
	gate   *gate
	builds places
	// refusals are those of jump hosts.
	refusals refusals
	// random returns numbers from [0, 1).
	random func() float64
}

// check probes a target once. known is what earlier probes left; the updated one
// is returned. The only reason for an error is that ctx ended: then nothing was
// found out.
func (c *checker) check(ctx context.Context, t *Target, known knowledge) (Result, knowledge, error) {
	r := &report{target: t, facts: known.facts}
	r.facts.OfferedHostKey, r.facts.OfferedHostKeyFingerprint = "", ""
	known.conn = nil
	started, conn, err := c.run(ctx, r, &known)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if conn != nil {
		if _, failed := r.failure(); err == nil && t.keep && !failed {
			known.conn = conn
		} else {
			_ = conn.Close()
		}
	}
	if err != nil {
		return Result{}, known, err
	}
	known.facts = r.facts
	if len(r.outcomes) < len(Steps()) {
		// A builder that comes back may do so with another configuration.
		known.offerUntil = time.Time{}
		known.canaries.doubt = true
	}
	outcomes := r.complete()
	return Result{
		Outcomes: outcomes, Facts: r.facts,
		Started: started, Duration: time.Since(started), Took: r.took(outcomes),
	}, known, nil
}

// run passes the steps. It returns when it began to connect, and the connection where
// it got one.
func (c *checker) run(ctx context.Context, r *report, known *knowledge) (time.Time, *sshconn.Conn, error) {
	t := r.target
	policy, ok := hostKeyPolicy(r, known.firstKey)
	if !ok {
		return time.Now(), nil, nil
	}
	keys := parseCredentials(t.Credentials, time.Now())
	if len(keys.list) == 0 {
		// Connecting without the intent to log in would be held against us
		// (PerSourcePenalties), and would find out nothing that can be used.
		r.fail(StepAuthenticated, keys.reason, t.says("%s", keys.message))
		return time.Now(), nil, nil
	}
	if !prepareHop(r) {
		return time.Now(), nil, nil
	}
	release, err := c.enter(ctx, r)
	if err != nil {
		return time.Time{}, nil, err
	}
	defer release()
	started := time.Now()
	r.watch.start()
	if refused := c.refusedBefore(r); refused != nil {
		c.notJumped(ctx, r, refused)
		return started, nil, nil
	}
	conn, err := c.connect(ctx, r, policy, keys.list)
	if err != nil {
		var failure *sshconn.Error
		if !errors.As(err, &failure) {
			return started, nil, err
		}
		c.notConnected(ctx, r, known, keys, policy, failure)
		return started, nil, nil
	}
	release()
	known.spoken = true
	r.pass(StepReachable, ReasonConnected, messageConnected(t))
	verified(r, known, conn.HostKey())
	r.facts.Credential = ""
	if used := conn.Signer(); used >= 0 {
		r.facts.Credential = keys.names[used]
	}
	r.pass(StepAuthenticated, ReasonAuthenticated, messageLoggedIn(t, r.facts.Credential))
	if c.nix(ctx, r, known, conn) && c.machine(ctx, r, known, conn) {
		c.systems(ctx, r, known, conn)
	}
	return started, conn, nil
}

// connect opens the connection. Its handshake takes a turn at the gate, and the time
// of the steps that it passes is counted.
func (c *checker) connect(ctx context.Context, r *report, policy sshconn.HostKeyPolicy, keys []ssh.Signer) (*sshconn.Conn, error) {
	t := r.target
	timeout := t.Timeout
	if t.patience > 0 {
		timeout = t.patience
	}
	var turn atomic.Pointer[func()]
	defer func() {
		if release := turn.Load(); release != nil {
			(*release)()
		}
	}()
	return sshconn.Dial(ctx, c.throughHop(r, sshconn.Config{
		Address: t.Address(), User: t.User, Signers: keys, HostKeys: policy,
		NetDial: c.dial, Timeout: timeout,
		OnStep: r.watch.passed,
		AwaitTurn: func(ctx context.Context) error {
			r.watch.lap(StepReachable)
			defer r.watch.start()
			release, err := c.gate.turn(ctx)
			if err == nil {
				turn.Store(&release)
			}
			return err
		},
	}))
}

// verified notes a host key that was accepted. One accepted on first use is pinned
// from then on, even where the login fails, as OpenSSH does.
func verified(r *report, known *knowledge, key ssh.PublicKey) {
	r.facts.HostKey, r.facts.HostKeyFingerprint = sshconn.AuthorizedKey(key), sshconn.Fingerprint(key)
	reason := ReasonHostKeyMatches
	if firstUse(r.target) && known.firstKey == "" {
		reason = ReasonHostKeyFirstUse
		known.firstKey = r.facts.HostKey
	}
	r.pass(StepHostKeyVerified, reason, messageHostKeyVerified(r.target, reason, r.facts.HostKeyFingerprint))
}

// firstUse tells whether the first host key seen is to be trusted.
func firstUse(t *Target) bool {
	return t.TrustOnFirstUse && len(t.HostKeys) == 0 && len(t.CertificateAuthorities) == 0
}

// hostKeyPolicy reads the target's keys. pinned is the key remembered from the
// first use, if there was one.
func hostKeyPolicy(r *report, pinned string) (sshconn.HostKeyPolicy, bool) {
	t := r.target
	var policy sshconn.HostKeyPolicy
	lines := t.HostKeys
	if firstUse(t) {
		if pinned == "" {
			return sshconn.HostKeyPolicy{FirstUse: true}, true
		}
		lines = []string{pinned}
	}
	var ok bool
	if policy.Pinned, ok = parseKeys(r, "hostKeys", lines); !ok {
		return policy, false
	}
	policy.Authorities, ok = parseKeys(r, "hostCertificateAuthorities", t.CertificateAuthorities)
	return policy, ok
}

func parseKeys(r *report, field string, lines []string) ([]ssh.PublicKey, bool) {
	var keys []ssh.PublicKey
	for i, line := range lines {
		key, err := sshconn.ParsePublicKey(line)
		if err != nil {
			r.fail(StepHostKeyVerified, ReasonHostKeyMalformed, messageHostKeyMalformed(r.target, field, i))
			return nil, false
		}
		keys = append(keys, key)
	}
	return keys, true
}
