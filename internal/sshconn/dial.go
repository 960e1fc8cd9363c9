// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Defaults of [Config].
const (
	DefaultTimeout       = 10 * time.Second
	DefaultClientVersion = "SSH-2.0-nix-builder-operator"
)

// Config says how to connect.
type Config struct {
	// Address is host:port. Host certificates are checked against its host part.
	Address string
	User    string
	// Signers are tried in order.
	Signers  []ssh.Signer
	HostKeys HostKeyPolicy
	// NetDial opens the network connection. Nil is [NewDialer] with
	// [DefaultDenied]; who sets it is responsible for addresses not allowed.
	NetDial DialFunc
	// Jump, unless nil, is an SSH server through which Address is connected to, as
	// with OpenSSH's ProxyJump: the name is resolved and connected to from there.
	// NetDial is not used then, but the jump host's is. The connection to the jump
	// host belongs to this one and ends with it.
	Jump *Config
	// Timeout bounds each step. Zero is [DefaultTimeout].
	Timeout   time.Duration
	Keepalive Keepalive
	// ClientVersion is sent as identification. Empty is [DefaultClientVersion].
	ClientVersion string
	// AwaitTurn, unless nil, is called once when the peer has identified itself
	// as an SSH server and before the costly key exchange. It lets callers bound
	// how many of these run at once without waiting for silent peers. The time it
	// takes is charged to no step. Its error ends the attempt.
	AwaitTurn func(ctx context.Context) error
	// OnStep, unless nil, is called when a step begins, StepEstablished included;
	// where there are none for long, the last one is under way. It must not block
	// and may be called from any goroutine.
	OnStep func(Step)
}

func (c Config) withDefaults() Config {
	if c.NetDial == nil {
		c.NetDial = NewDialer(DefaultDenied())
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.ClientVersion == "" {
		c.ClientVersion = DefaultClientVersion
	}
	return c
}

// Dial connects and logs in. ctx bounds the whole attempt, [Config.Timeout] each
// step of it; neither concerns the connection afterwards. Every error is an
// [*Error].
func Dial(ctx context.Context, config Config) (*Conn, error) {
	config = config.withDefaults()
	attempt := &attempt{config: config}
	conn, err := attempt.run(ctx)
	if err != nil {
		if !err.JumpHost {
			err.Address = config.Address
		}
		return nil, err
	}
	return conn, nil
}

// attempt is one run of Dial.
type attempt struct {
	config  Config
	login   *login
	watch   *watchConn
	hostKey ssh.PublicKey
}

func (a *attempt) run(ctx context.Context) (*Conn, *Error) {
	if len(a.config.Signers) == 0 {
		return nil, &Error{Kind: KindNoUsableKey, Step: StepLogin}
	}
	raw, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	a.watch = &watchConn{Conn: raw, timeout: a.config.Timeout, born: time.Now(), onStep: a.config.OnStep}
	if a.config.AwaitTurn != nil {
		a.watch.awaitTurn = func() error { return a.config.AwaitTurn(ctx) }
	}
	a.login = newLogin(a.config.Signers, a.watch)
	a.watch.enter(StepIdentify)

	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	client, chans, reqs, hsErr := ssh.NewClientConn(a.watch, a.config.Address, a.clientConfig())
	if !stop() {
		if hsErr == nil {
			_ = client.Close()
		}
		return nil, a.interrupted(ctx)
	}
	if hsErr != nil {
		failure := a.classify(hsErr)
		if failure.Seen == nil {
			failure.Seen = a.hostKey
		}
		return nil, failure
	}
	a.watch.enter(StepEstablished)
	a.watch.joinPackets(client)
	return newConn(a, ssh.NewClient(client, chans, reqs)), nil
}

func (a *attempt) connect(ctx context.Context) (net.Conn, *Error) {
	if a.config.Jump != nil {
		return a.connectThrough(ctx)
	}
	stepCtx, cancel := context.WithTimeout(ctx, a.config.Timeout)
	defer cancel()
	raw, err := a.config.NetDial(stepCtx, "tcp", a.config.Address)
	switch {
	case err == nil:
		return raw, nil
	case ctx.Err() != nil:
		return nil, a.interrupted(ctx)
	default:
		return nil, classifyDial(err)
	}
}

// interrupted is the error of an attempt whose context ended.
func (a *attempt) interrupted(ctx context.Context) *Error {
	step := StepConnect
	if a.watch != nil {
		step = a.watch.seen().step
	}
	kind := KindCanceled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		kind = KindTimeout
	}
	return &Error{Kind: kind, Step: step, Err: context.Cause(ctx)}
}

func (a *attempt) clientConfig() *ssh.ClientConfig {
	return &ssh.ClientConfig{
		User:              a.config.User,
		Auth:              []ssh.AuthMethod{a.login.method()},
		AuthCallback:      a.login.next,
		HostKeyAlgorithms: a.config.HostKeys.algorithms(),
		HostKeyCallback:   a.checkHostKey,
		ClientVersion:     a.config.ClientVersion,
	}
}

// checkHostKey runs at the end of every key exchange. Later exchanges on the same
// connection must present the same key.
func (a *attempt) checkHostKey(_ string, _ net.Addr, key ssh.PublicKey) error {
	if err := a.config.HostKeys.check(hostOf(a.config.Address), key); err != nil {
		err.Step = StepKeyExchange
		return err
	}
	if a.hostKey == nil {
		a.hostKey = key
		a.watch.enter(StepLogin)
		return nil
	}
	if Fingerprint(a.hostKey) != Fingerprint(key) {
		return &Error{
			Kind: KindHostKeyChanged, Step: StepEstablished, Seen: key,
			Expected: []string{Fingerprint(a.hostKey)},
		}
	}
	return nil
}

// classify turns a failed handshake into its kind, by types and by what was seen
// on the wire. The ssh package's wording decides nowhere, except that a disconnect
// message, whose type is private, can only be read as text.
func (a *attempt) classify(err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var algorithms *ssh.AlgorithmNegotiationError
	if errors.As(err, &algorithms) {
		return a.noAlgorithm(algorithms)
	}
	seen := a.watch.seen()
	if errors.As(seen.readErr, &own) {
		return own
	}
	if seen.step == StepIdentify {
		return unidentified(seen)
	}
	out := &Error{Kind: KindProtocol, Step: seen.step}
	goodbye, disconnected := disconnectText(err)
	ended := disconnected || seen.readErr != nil
	switch {
	case isTimeout(seen.readErr) || isTimeout(err):
		out.Kind = KindTimeout
	case strings.Contains(goodbye, "Too many authentication failures"):
		out.Kind = KindAuthRefused
	case ended && seen.step == StepLogin:
		out.Kind = KindAuthDropped
	case ended:
		out.Kind = KindLost
	}
	switch {
	case disconnected:
		out.Detail = Printable(goodbye)
	case out.Kind == KindProtocol:
		out.Detail = Printable(err.Error())
	default:
		out.Err = seen.readErr
	}
	return out
}

// disconnectText finds the text of the peer's SSH_MSG_DISCONNECT (RFC 4253
// section 11.1) in err.
func disconnectText(err error) (string, bool) {
	_, text, ok := strings.Cut(err.Error(), "ssh: disconnect, reason ")
	if !ok {
		return "", false
	}
	_, text, _ = strings.Cut(text, ": ")
	return text, true
}

// unidentified is the error of a peer that sent no SSH identification.
func unidentified(seen watched) *Error {
	out := &Error{Step: StepIdentify, Detail: Printable(seen.head)}
	switch {
	case strings.HasPrefix(seen.head, "Exceeded MaxStartups"),
		strings.HasPrefix(seen.head, "Not allowed at this time"):
		// What newer OpenSSH says before it closes.
		out.Kind = KindTurnedAway
	case seen.head != "":
		out.Kind = KindNotSSH
	case !isTimeout(seen.readErr):
		out.Kind, out.Err = KindTurnedAway, seen.readErr
	case seen.reacted:
		out.Kind = KindSilent
	default:
		out.Kind = KindStalled
	}
	return out
}

func (a *attempt) noAlgorithm(err *ssh.AlgorithmNegotiationError) *Error {
	out := &Error{Kind: KindNoCommonAlgorithm, Step: StepKeyExchange, Detail: Printable(err.What)}
	if err.What == "host key" && !a.config.HostKeys.open() {
		out.Kind = KindHostKeyType
		out.Detail = Printable(strings.Join(err.RequestedAlgorithms, ", "))
		out.Expected = fingerprints(a.config.HostKeys.Pinned)
	}
	return out
}

// isTimeout tells whether err is a network time-out.
func isTimeout(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}
