// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// Network is a network in memory. All waiting on it is seen by testing/synctest, so
// a test can let servers and clients run through hours within moments. Addresses are
// arbitrary "host:port" texts.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*memListener
	unknown   map[string]bool
	blackHole map[string]bool
}

// NewNetwork makes an empty network, in which every connection is refused.
func NewNetwork() *Network {
	return &Network{
		listeners: map[string]*memListener{}, unknown: map[string]bool{}, blackHole: map[string]bool{},
	}
}

// Listen listens on an address.
func (n *Network) Listen(address string) net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &memListener{
		network: n, address: memAddr(address),
		backlog: make(chan net.Conn, 128), done: make(chan struct{}),
	}
	n.listeners[address] = l
	return l
}

// BlackHole makes an address swallow every attempt to connect.
func (n *Network) BlackHole(address string) { n.mark(n.blackHole, address) }

// UnknownName makes an address one whose host name does not exist.
func (n *Network) UnknownName(address string) { n.mark(n.unknown, address) }

func (n *Network) mark(set map[string]bool, address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	set[address] = true
}

// Dial connects, as [net.Dialer.DialContext] does.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	l, unknown, hole := n.listeners[address], n.unknown[address], n.blackHole[address]
	n.mu.Unlock()
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: memAddr(address), Err: err}
	}
	switch {
	case unknown:
		return fail(&net.DNSError{Err: "no such host", Name: address, IsNotFound: true})
	case hole:
		<-ctx.Done()
		return fail(os.ErrDeadlineExceeded)
	case l == nil:
		return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	client, server := pipe("client", address)
	select {
	case l.backlog <- server:
		return client, nil
	case <-l.done:
		return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	case <-ctx.Done():
		return fail(os.ErrDeadlineExceeded)
	}
}

type memAddr string

// Network is the name of the kind of address.
func (memAddr) Network() string { return "memory" }

// String is the address.
func (a memAddr) String() string { return string(a) }

type memListener struct {
	network *Network
	address memAddr
	backlog chan net.Conn
	done    chan struct{}
	once    sync.Once
}

// Accept waits for a connection.
func (l *memListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.backlog:
		return conn, nil
	case <-l.done:
		return nil, fmt.Errorf("accept %s: %w", l.address, net.ErrClosed)
	}
}

// Close ends listening; connections are refused again.
func (l *memListener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		if l.network.listeners[string(l.address)] == l {
			delete(l.network.listeners, string(l.address))
		}
		l.network.mu.Unlock()
		close(l.done)
	})
	return nil
}

// Addr is the address listened on.
func (l *memListener) Addr() net.Addr { return l.address }
