// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"context"
	"errors"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// failedAt maps a failure to connect to the step it belongs to and its reason.
// spoken tells whether an SSH server answered there before.
func failedAt(e *sshconn.Error, spoken bool) (Step, Reason) {
	switch e.Kind {
	case sshconn.KindNameUnknown:
		return StepReachable, ReasonNameUnknown
	case sshconn.KindNameLookup:
		return StepReachable, ReasonNameLookupFailed
	case sshconn.KindDenied:
		return StepReachable, ReasonAddressDenied
	case sshconn.KindRefused:
		return StepReachable, ReasonConnectionRefused
	case sshconn.KindUnreachable:
		return StepReachable, ReasonUnreachable
	case sshconn.KindSilent:
		return StepReachable, ReasonSSHSilent
	case sshconn.KindStalled:
		// Whether processes are stopped or there never was an SSH server cannot be
		// told from the outside, except by experience.
		if spoken {
			return StepReachable, ReasonSSHStopped
		}
		return StepReachable, ReasonSSHSilent
	case sshconn.KindNotSSH:
		return StepReachable, ReasonNotSSH
	case sshconn.KindTurnedAway:
		return StepReachable, ReasonTurnedAway
	case sshconn.KindNoCommonAlgorithm:
		return StepReachable, ReasonNoCommonAlgorithm
	case sshconn.KindForwardRefused:
		return StepReachable, ReasonJumpForwarding
	case sshconn.KindTimeout:
		return timedOutAt(e.Step)
	}
	if reason := hostKeyReason(e.Kind); reason != "" {
		return StepHostKeyVerified, reason
	}
	return loginFailedAt(e)
}

func timedOutAt(step sshconn.Step) (Step, Reason) {
	switch step {
	case sshconn.StepConnect, sshconn.StepForward:
		return StepReachable, ReasonConnectTimeout
	case sshconn.StepLogin:
		return StepAuthenticated, ReasonAuthTimeout
	default:
		return StepReachable, ReasonHandshakeTimeout
	}
}

func hostKeyReason(kind sshconn.Kind) Reason {
	switch kind {
	case sshconn.KindHostKeyUnknown:
		return ReasonHostKeyUnknown
	case sshconn.KindHostKeyChanged:
		return ReasonHostKeyChanged
	case sshconn.KindHostKeyType:
		return ReasonHostKeyType
	case sshconn.KindHostCertificateAuthority:
		return ReasonHostCertAuthority
	case sshconn.KindHostCertificatePrincipal:
		return ReasonHostCertPrincipal
	case sshconn.KindHostCertificateExpired:
		return ReasonHostCertExpired
	case sshconn.KindHostCertificateEarly:
		return ReasonHostCertNotYetValid
	case sshconn.KindHostCertificateInvalid:
		return ReasonHostCertInvalid
	}
	return ""
}

func loginFailedAt(e *sshconn.Error) (Step, Reason) {
	switch e.Kind {
	case sshconn.KindNoUsableKey:
		return StepAuthenticated, ReasonSigningFailed
	case sshconn.KindAuthRefused:
		return StepAuthenticated, ReasonAuthRefused
	case sshconn.KindAuthDropped:
		return StepAuthenticated, ReasonAuthDropped
	}
	if e.Step == sshconn.StepLogin {
		return StepAuthenticated, ReasonAuthProtocolViolation
	}
	return StepReachable, ReasonHandshakeFailed
}

// notConnected notes why there is no connection.
func (c *checker) notConnected(ctx context.Context, r *report, known *knowledge, keys signers, policy sshconn.HostKeyPolicy, e *sshconn.Error) {
	t := r.target
	if e.JumpHost {
		if e.Kind == sshconn.KindAuthRefused {
			c.refusals.note(r.hop.login, e)
		}
		c.notJumped(ctx, r, e)
		return
	}
	step, reason := failedAt(e, known.spoken)
	r.watch.lap(step)
	if e.Step == sshconn.StepForward {
		r.fail(step, reason, messageForward(t, reason, e))
		return
	}
	if step == StepReachable {
		r.fail(step, reason, messageReachable(t, reason, e, known.spoken))
		return
	}
	known.spoken = true
	r.pass(StepReachable, ReasonConnected, messageConnected(t))
	if step == StepHostKeyVerified {
		c.badHostKey(ctx, r, keys, policy, reason, e)
		return
	}
	if e.Seen != nil {
		verified(r, known, sshconn.PlainKey(e.Seen))
	}
	if reason == ReasonAuthRefused {
		r.fail(step, reason, messageRefused(t, keys, e.Detail))
		return
	}
	r.fail(step, reason, messageLogin(t, reason, keys.names, e.Detail))
}

// badHostKey notes a host key that is not accepted. A host that has no key of an
// expected type did not present any: it is asked once more, without expectation,
// so that people see which key it has. No key is accepted then either.
func (c *checker) badHostKey(ctx context.Context, r *report, keys signers, policy sshconn.HostKeyPolicy, reason Reason, e *sshconn.Error) {
	switch {
	case e.Seen == nil && len(policy.Pinned) == 0:
		reason = ReasonHostCertMissing
	case e.Seen == nil:
		_, err := c.connect(ctx, &report{target: r.target, hop: r.hop}, sshconn.HostKeyPolicy{}, keys.list)
		var again *sshconn.Error
		if errors.As(err, &again) {
			e.Seen = again.Seen
		}
	}
	if e.Seen != nil {
		key := sshconn.PlainKey(e.Seen)
		r.facts.OfferedHostKey, r.facts.OfferedHostKeyFingerprint = sshconn.AuthorizedKey(key), sshconn.Fingerprint(key)
	}
	r.fail(StepHostKeyVerified, reason, messageHostKey(r.target, reason, e))
}
