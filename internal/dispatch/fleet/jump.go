// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// through completes config for an endpoint behind a jump host. It waits until few other
// connections to the jump host are being made; leave ends that, and the login there
// does already.
func (o SSHOptions) through(ctx context.Context, doors *doors, e inventory.Endpoint, config *sshconn.Config) (leave func(), err error) {
	jump := inventory.Endpoint{
		Host: e.Jump.Host, Port: e.Jump.Port, User: e.Jump.User,
		HostKeys: e.Jump.HostKeys, CertificateAuthorities: e.Jump.CertificateAuthorities,
		Credentials: e.Jump.Credentials,
	}
	signers, err := o.signers(jump)
	if err != nil {
		return nil, fmt.Errorf("jump host: %w", err)
	}
	policy, err := o.hostKeys(jump)
	if err != nil {
		return nil, fmt.Errorf("jump host: %w", err)
	}
	if leave, err = doors.enter(ctx, address(jump)); err != nil {
		return nil, err
	}
	config.Jump = &sshconn.Config{
		Address: address(jump), User: jump.User, Signers: signers, HostKeys: policy,
		NetDial: o.NetDial, Keepalive: o.Keepalive,
		OnStep: func(step sshconn.Step) {
			if step == sshconn.StepEstablished {
				leave()
			}
		},
	}
	return leave, nil
}

// doors bound the connections to each jump host that are being made at the same time,
// as is done for builders: many of these may be behind one, and dialed at once.
type doors struct {
	mu   sync.Mutex
	open map[string]*door
}

type door struct {
	places chan struct{}
	users  int // inside and before it; the entry goes with the last
}

// enter waits for a place. leave may be called more than once.
func (d *doors) enter(ctx context.Context, address string) (leave func(), err error) {
	d.mu.Lock()
	at := d.open[address]
	if at == nil {
		at = &door{places: make(chan struct{}, maxHandshakes)}
		d.open[address] = at
	}
	at.users++
	d.mu.Unlock()
	forget := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if at.users--; at.users == 0 {
			delete(d.open, address)
		}
	}
	select {
	case at.places <- struct{}{}:
		return sync.OnceFunc(func() {
			<-at.places
			forget()
		}), nil
	case <-ctx.Done():
		forget()
		return nil, context.Cause(ctx)
	}
}

// atJumpHost finds what is wrong with the jump host in an error, nil if it is not about
// one.
func atJumpHost(err error) *sshconn.Error {
	var e *sshconn.Error
	for errors.As(err, &e) {
		if e.JumpHost {
			return e
		}
		err = e.Err
	}
	return nil
}

// describeJump is describe for a builder whose jump host is in the way.
func describeJump(e *sshconn.Error) string {
	bare := *e
	bare.JumpHost = false
	words := describe(&bare)
	if words == unreachable {
		words = "is " + words
	}
	return "is behind a jump host that " + words
}
