// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// nameServer is the cluster's DNS: it knows the names that tests add, and says of all
// others that they do not exist.
type nameServer struct {
	conn net.PacketConn

	mu    sync.Mutex
	names map[string]netip.Addr // without the final dot
	muted map[string]bool       // names about which it says nothing
}

func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{conn: conn, names: map[string]netip.Addr{}, muted: map[string]bool{}}
	var serving sync.WaitGroup
	serving.Go(n.serve)
	t.Cleanup(func() {
		conn.Close()
		serving.Wait()
	})
	return n
}

// set gives a name an address. One without stands for a name about which the server
// says nothing.
func (n *nameServer) set(name, address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.muted[name] = address == ""
	if address != "" {
		n.names[name] = netip.MustParseAddr(address)
	}
}

func (n *nameServer) serve() {
	query := make([]byte, 512)
	for {
		length, from, err := n.conn.ReadFrom(query)
		if err != nil {
			return
		}
		if answer := n.answer(query[:length]); answer != nil {
			_, _ = n.conn.WriteTo(answer, from) // whoever asked asks again
		}
	}
}

// Fields of DNS messages (RFC 1035, section 4.1).
const (
	dnsHeader     = 12
	dnsResponse   = 0x8180 // an answer, recursion desired and available
	dnsNoSuchName = 3
	dnsTypeA      = 1
	dnsClassIN    = 1
)

// answer makes the answer to a query with one question, or none.
func (n *nameServer) answer(query []byte) []byte {
	var labels []string
	at := dnsHeader
	for at < len(query) && query[at] != 0 {
		end := at + 1 + int(query[at])
		if end > len(query) {
			return nil
		}
		labels = append(labels, string(query[at+1:end]))
		at = end
	}
	if at+5 > len(query) {
		return nil
	}
	kind, question := binary.BigEndian.Uint16(query[at+1:]), query[dnsHeader:at+5]
	name := strings.ToLower(strings.Join(labels, "."))
	n.mu.Lock()
	address, known := n.names[name]
	muted := n.muted[name]
	n.mu.Unlock()
	if muted {
		return nil
	}
	flags, answers := uint16(dnsResponse), uint16(0)
	if !known {
		flags |= dnsNoSuchName
	}
	if known && kind == dnsTypeA {
		answers = 1
	}
	out := append([]byte{}, query[:2]...)
	for _, field := range []uint16{flags, 1, answers, 0, 0} {
		out = binary.BigEndian.AppendUint16(out, field)
	}
	out = append(out, question...)
	if answers == 1 {
		for _, field := range []uint16{0xc000 | dnsHeader, dnsTypeA, dnsClassIN, 0, 1, 4} {
			out = binary.BigEndian.AppendUint16(out, field)
		}
		out = append(out, address.AsSlice()...)
	}
	return out
}

// dialer is the operator's own but for where it looks names up.
func (n *nameServer) dialer(denied []netip.Prefix) sshconn.DialFunc {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", n.conn.LocalAddr().String())
	}}
	dial := sshconn.NewDialer(denied)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		addresses, err := resolver.LookupHost(ctx, host)
		if err != nil {
			return nil, err
		}
		return dial(ctx, network, net.JoinHostPort(addresses[0], port))
	}
}

// deniedHere are the ranges that the operator does not connect to. Of loopback it is
// only the usual address: the lab is on others.
func deniedHere() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("169.254.0.0/16")}
}
