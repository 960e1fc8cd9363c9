// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// methodPublicKey is the only authentication method used (RFC 4252 section 7).
const methodPublicKey = "publickey"

// login authenticates with a list of signers and learns which one was used.
type login struct {
	signers []ssh.Signer
	watch   *watchConn

	mu      sync.Mutex
	used    int // index of the signer that signed last, -1 for none
	signErr error
}

// How the details of a [KindAuthRefused] begin that says more than that.
const (
	// DetailAlsoAsks precedes the methods that the peer demands besides the key.
	DetailAlsoAsks = "also asks for: "
	// DetailNoKeys precedes the methods that the peer offers in place of keys.
	DetailNoKeys = "takes no keys, only: "
)

func newLogin(signers []ssh.Signer, watch *watchConn) *login {
	l := &login{watch: watch, used: -1}
	for i, signer := range signers {
		l.signers = append(l.signers, newNotedSigner(l, i, signer))
	}
	return l
}

func (l *login) method() ssh.AuthMethod { return ssh.PublicKeys(l.signers...) }

// next decides, before every attempt but the initial "none", whether there is
// another one. Deciding here keeps the reasons apart that the ssh package folds
// into one text.
func (l *login) next(c *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	if err := l.watch.hungUp(); err != nil {
		kind := KindAuthDropped
		if isTimeout(err) {
			kind = KindTimeout
		}
		return nil, &Error{Kind: kind, Step: StepLogin, Err: err}
	}
	l.mu.Lock()
	signErr := l.signErr
	l.mu.Unlock()
	if signErr != nil {
		return nil, &Error{Kind: KindNoUsableKey, Step: StepLogin, Err: signErr}
	}
	if len(c.PartialSuccessMethods) > 0 {
		return nil, &Error{
			Kind: KindAuthRefused, Step: StepLogin,
			Detail: Printable(DetailAlsoAsks + strings.Join(c.AllowedMethods, ", ")),
		}
	}
	if slices.Contains(c.TriedMethods, methodPublicKey) {
		return nil, &Error{Kind: KindAuthRefused, Step: StepLogin}
	}
	if !slices.Contains(c.AllowedMethods, methodPublicKey) {
		return nil, &Error{
			Kind: KindAuthRefused, Step: StepLogin,
			Detail: Printable(DetailNoKeys + strings.Join(c.AllowedMethods, ", ")),
		}
	}
	return nil, nil
}

// usedSigner is the index of the signer that logged in, -1 if none was needed.
func (l *login) usedSigner() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}

func (l *login) note(index int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if l.signErr == nil {
			l.signErr = err
		}
		return
	}
	l.used = index
}

// notedSigner reports to its login when it was asked to sign, which a server does
// only for a key that it accepts.
type notedSigner struct {
	ssh.Signer
	login *login
	index int
}

// newNotedSigner keeps the signer's choice of algorithms: the ssh package finds it
// by interface.
func newNotedSigner(l *login, index int, signer ssh.Signer) ssh.Signer {
	base := notedSigner{Signer: signer, login: l, index: index}
	algorithmSigner, ok := signer.(ssh.AlgorithmSigner)
	if !ok {
		return base
	}
	noted := notedAlgorithmSigner{notedSigner: base, signer: algorithmSigner}
	if multi, ok := signer.(ssh.MultiAlgorithmSigner); ok {
		return notedMultiSigner{notedAlgorithmSigner: noted, algorithms: multi.Algorithms()}
	}
	return noted
}

// Sign signs and notes it.
func (s notedSigner) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	signature, err := s.Signer.Sign(rand, data)
	s.login.note(s.index, err)
	return signature, err
}

type notedAlgorithmSigner struct {
	notedSigner
	signer ssh.AlgorithmSigner
}

// SignWithAlgorithm signs and notes it.
func (s notedAlgorithmSigner) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	signature, err := s.signer.SignWithAlgorithm(rand, data, algorithm)
	s.login.note(s.index, err)
	return signature, err
}

type notedMultiSigner struct {
	notedAlgorithmSigner
	algorithms []string
}

// Algorithms lists what the signer can sign with.
func (s notedMultiSigner) Algorithms() []string { return s.algorithms }
