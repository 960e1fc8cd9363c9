// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Link is a TCP relay in front of a builder, so that a test can have a line
// that is slow, silent or cut without touching the machine's network.
type Link struct {
	listener net.Listener
	target   string
	dial     DialFunc
	ctx      context.Context
	cancel   context.CancelFunc
	group    sync.WaitGroup

	mu          sync.Mutex
	rate        int           // bytes per second towards the target, per connection; 0: no limit
	silent      chan struct{} // closed: bytes pass; open: they wait
	connections map[net.Conn]bool
}

// DialFunc opens a connection to an address ("host:port").
type DialFunc func(ctx context.Context, address string) (net.Conn, error)

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// NewLink starts a relay from an address of the lab to the target
// ("host:port").
func (l *Lab) NewLink(target string) (*Link, error) { return l.NewLinkThrough(target, dialTCP) }

// NewLinkThrough is [Lab.NewLink] to a target that takes another way to connect to,
// such as one in another network namespace.
func (l *Lab) NewLinkThrough(target string, dial DialFunc) (*Link, error) {
	_, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	link, err := listenLink(net.JoinHostPort(l.nextAddress(), port), target, dial)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.links = append(l.links, link)
	return link, nil
}

func listenLink(address, target string, dial DialFunc) (*Link, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("link to %s: %w", target, err)
	}
	k := &Link{listener: listener, target: target, dial: dial, silent: make(chan struct{}), connections: map[net.Conn]bool{}}
	close(k.silent)
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.group.Go(k.serve)
	return k, nil
}

// Address is where the relay listens, as "host:port".
func (k *Link) Address() string { return k.listener.Addr().String() }

// SetUploadRate limits what each connection carries towards the target, in
// bytes per second; 0 is no limit.
func (k *Link) SetUploadRate(bytesPerSecond int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rate = bytesPerSecond
}

// Silence holds back every byte in both directions while connections stay
// open, as a network that drops packets does.
func (k *Link) Silence() {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.silent:
		k.silent = make(chan struct{})
	default:
	}
}

// Speak undoes [Link.Silence]; what was held back arrives.
func (k *Link) Speak() {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.silent:
	default:
		close(k.silent)
	}
}

// Cut breaks every connection; new ones work.
func (k *Link) Cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for connection := range k.connections {
		// No lingering: the ends see a reset, not an orderly end.
		if tcp, ok := connection.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		connection.Close()
	}
}

// Close ends the relay and every connection through it.
func (k *Link) Close() {
	k.cancel()
	k.listener.Close()
	k.Cut()
	k.group.Wait()
}

func (k *Link) serve() {
	for {
		client, err := k.listener.Accept()
		if err != nil {
			return
		}
		k.group.Go(func() { k.relay(client) })
	}
}

// relay joins one connection with one to the target until either ends.
func (k *Link) relay(client net.Conn) {
	defer k.forget(client)
	if !k.keep(client) {
		return
	}
	server, err := k.dial(k.ctx, k.target)
	if err != nil {
		return
	}
	defer k.forget(server)
	if !k.keep(server) {
		return
	}
	var group sync.WaitGroup
	group.Go(func() { k.copy(server, client, true) })
	group.Go(func() { k.copy(client, server, false) })
	group.Wait()
}

// keep registers a connection for [Link.Cut]; false once the link is closed.
func (k *Link) keep(connection net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.connections[connection] = true
	return k.ctx.Err() == nil
}

func (k *Link) forget(connection net.Conn) {
	connection.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.connections, connection)
}

// copy moves bytes one way, no faster than the rate, until an end.
func (k *Link) copy(to, from net.Conn, upload bool) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if !k.pause(n, upload) {
				break
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				break
			}
		}
		if errors.Is(err, io.EOF) {
			if tcp, ok := to.(*net.TCPConn); ok && tcp.CloseWrite() == nil {
				return
			}
			break
		}
		if err != nil {
			break
		}
	}
	to.Close()
	from.Close()
}

// pause waits as the link's settings have it before n bytes move on; false
// when the link has been closed meanwhile.
func (k *Link) pause(n int, upload bool) bool {
	k.mu.Lock()
	rate, silent := k.rate, k.silent
	k.mu.Unlock()
	select {
	case <-silent:
	case <-k.ctx.Done():
		return false
	}
	if !upload || rate == 0 {
		return true
	}
	timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(rate))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-k.ctx.Done():
		return false
	}
}
