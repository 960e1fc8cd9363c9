// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"errors"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Kind is one way in which a connection or a command on it can fail.
type Kind string

// The kinds of failure, in the order in which a connection passes the steps.
const (
	// KindNameUnknown: the resolver answered that the host name does not exist.
	KindNameUnknown Kind = "name unknown"
	// KindNameLookup: the resolver gave no answer, or an error.
	KindNameLookup Kind = "name lookup failed"
	// KindDenied: the address lies in a range that must not be connected to.
	KindDenied Kind = "address denied"
	// KindRefused: nothing listens on the port, or a firewall rejects.
	KindRefused Kind = "connection refused"
	// KindUnreachable: there is no route to the address.
	KindUnreachable Kind = "unreachable"
	// KindSilent: the peer accepted the connection and sent nothing, though
	// something there reads what we send (it hung up when we did).
	KindSilent Kind = "silent"
	// KindStalled: as KindSilent, but without any sign of a process behind the
	// port. That is what a machine whose processes are stopped looks like: its
	// kernel alone still accepts connections.
	KindStalled Kind = "stalled"
	// KindNotSSH: the peer sent something else than an SSH identification;
	// Detail holds its beginning.
	KindNotSSH Kind = "not SSH"
	// KindTurnedAway: the peer closed the connection before identifying itself.
	// OpenSSH does so beyond MaxStartups and to addresses that it penalises
	// (PerSourcePenalties).
	KindTurnedAway Kind = "turned away"
	// KindNoCommonAlgorithm: the peers share no algorithm; Detail names the kind
	// of algorithm.
	KindNoCommonAlgorithm Kind = "no common algorithm"
	// KindHostKeyUnknown: the policy knows no key for this host; Seen is the
	// one presented.
	KindHostKeyUnknown Kind = "host key unknown"
	// KindHostKeyChanged: the host presented another key than the expected ones.
	KindHostKeyChanged Kind = "host key changed"
	// KindHostKeyType: the host has no key of any expected type; Detail lists
	// the algorithms it offered.
	KindHostKeyType Kind = "host key of another type"
	// KindHostCertificateAuthority: the certificate was signed by an authority
	// that the policy does not know.
	KindHostCertificateAuthority Kind = "host certificate of an unknown authority"
	// KindHostCertificatePrincipal: the certificate is for other host names;
	// Detail lists them.
	KindHostCertificatePrincipal Kind = "host certificate for another name"
	// KindHostCertificateExpired: the certificate's validity is over.
	KindHostCertificateExpired Kind = "host certificate expired"
	// KindHostCertificateEarly: the certificate is not valid yet.
	KindHostCertificateEarly Kind = "host certificate not yet valid"
	// KindHostCertificateInvalid: the certificate is not one for hosts, carries
	// a critical option, or its signature is wrong.
	KindHostCertificateInvalid Kind = "host certificate invalid"
	// KindNoUsableKey: there is no key to log in with, or it could not sign.
	KindNoUsableKey Kind = "no usable key"
	// KindAuthRefused: the peer accepted none of the keys for this user.
	KindAuthRefused Kind = "login refused"
	// KindAuthDropped: the peer closed the connection instead of answering a
	// login attempt.
	KindAuthDropped Kind = "connection dropped during login"
	// KindSessionRefused: the peer would not open a session (MaxSessions).
	KindSessionRefused Kind = "session refused"
	// KindExecRefused: the peer would not run the command.
	KindExecRefused Kind = "command refused"
	// KindForwardRefused: the jump host does not pass connections on to the address
	// (AllowTcpForwarding, PermitOpen, a restricted key).
	KindForwardRefused Kind = "forwarding refused"
	// KindTimeout: no answer in time at the step that the error names.
	KindTimeout Kind = "timed out"
	// KindKeepalive: an established connection fell silent for longer than its
	// keepalive allows.
	KindKeepalive Kind = "keepalive unanswered"
	// KindLost: the connection ended (reset, closed by the peer).
	KindLost Kind = "connection lost"
	// KindProtocol: the peer broke the SSH protocol.
	KindProtocol Kind = "protocol violation"
	// KindCanceled: the caller's context ended; Err is its cause.
	KindCanceled Kind = "canceled"
	// KindClosed: the connection or session was closed on this side.
	KindClosed Kind = "closed"
)

// Step is a stage of connecting or of running a command.
type Step string

// The steps, in order.
const (
	// StepConnect covers resolving the name and connecting.
	StepConnect Step = "connect"
	// StepForward has the jump host resolve the name and connect; see [Config.Jump].
	StepForward Step = "connect from the jump host"
	// StepIdentify waits for the peer's SSH identification line.
	StepIdentify Step = "identification"
	// StepKeyExchange agrees on keys and checks the host key.
	StepKeyExchange Step = "key exchange"
	// StepLogin authenticates the user.
	StepLogin Step = "login"
	// StepSession opens a session.
	StepSession Step = "opening a session"
	// StepExec starts the command.
	StepExec Step = "starting the command"
	// StepEstablished is a connection in use.
	StepEstablished Step = "established"
)

// Error is every failure of this package that concerns a peer.
type Error struct {
	Kind    Kind
	Step    Step
	Address string // host:port as configured
	// JumpHost tells that the connection to the jump host failed, or ended, not the
	// one through it; Address is the jump host's.
	JumpHost bool
	// Detail says more: text that the peer sent (at most [MaxText] printable
	// characters), or the names of algorithms or principals.
	Detail string
	// Seen is the host key that the peer presented, where it got as far. It was
	// accepted unless the kind is one about host keys.
	Seen ssh.PublicKey
	// Expected lists what the policy wanted instead: fingerprints of keys or of
	// authorities.
	Expected []string
	// Err is the cause, if there is one beyond the kind. It may be nil.
	Err error
}

// Error tells what happened, at which step and with which peer.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("ssh to ")
	if e.JumpHost {
		b.WriteString("the jump host ")
	}
	b.WriteString(e.Address)
	b.WriteString(": ")
	b.WriteString(string(e.Kind))
	if e.Step != "" && e.Step != StepEstablished {
		b.WriteString(" (at " + string(e.Step) + ")")
	}
	if e.Seen != nil && e.Step == StepKeyExchange {
		b.WriteString(": seen " + Fingerprint(e.Seen))
	}
	if len(e.Expected) > 0 {
		b.WriteString(", expected " + strings.Join(e.Expected, " or "))
	}
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first [Error] in err's chain, or "".
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}
