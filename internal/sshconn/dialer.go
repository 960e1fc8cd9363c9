// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package sshconn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
)

// DialFunc opens a network connection, as [net.Dialer.DialContext] does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// DefaultDenied lists the address ranges that builders do not live in and that
// must not be reachable by writing a host name into an object: loopback,
// unspecified, link-local, and the metadata services of clouds that lie outside
// link-local.
func DefaultDenied() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud metadata
		netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud metadata
		netip.MustParsePrefix("::/128"),
		netip.MustParsePrefix("::1/128"),
		netip.MustParsePrefix("fe80::/10"),
		netip.MustParsePrefix("fd00:ec2::254/128"), // AWS metadata
	}
}

// DeniedError tells that an address lies in a denied range.
type DeniedError struct {
	Address netip.Addr
	Range   netip.Prefix
}

// Error names address and range.
func (e *DeniedError) Error() string {
	return fmt.Sprintf("address %s lies in the denied range %s", e.Address, e.Range)
}

// NewDialer returns a dial function that connects to no address within denied.
// Addresses are checked after the name was resolved, right before each attempt to
// connect, so no answer of a name server gets around the check. A refusal is a
// [*DeniedError] in the chain.
func NewDialer(denied []netip.Prefix) DialFunc {
	denied = slices.Clone(denied)
	dialer := &net.Dialer{
		// Liveness is ours to judge: TCP keepalives count no answers of sshd.
		KeepAliveConfig: net.KeepAliveConfig{Enable: false},
		Control: func(_, address string, _ syscall.RawConn) error {
			return checkAddress(denied, address)
		},
	}
	return dialer.DialContext
}

func checkAddress(denied []netip.Prefix, address string) error {
	target, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("check address %q: %w", address, err)
	}
	ip := target.Addr().Unmap().WithZone("")
	for _, prefix := range denied {
		if prefix.Contains(ip) {
			return &DeniedError{Address: ip, Range: prefix}
		}
	}
	return nil
}

// classifyDial turns a failure to connect into its kind.
func classifyDial(err error) *Error {
	out := &Error{Kind: KindUnreachable, Step: StepConnect, Err: err}
	var denied *DeniedError
	var dns *net.DNSError
	switch {
	case errors.As(err, &denied):
		out.Kind, out.Detail, out.Err = KindDenied, denied.Error(), nil
	case errors.As(err, &dns):
		out.Kind = KindNameLookup
		if dns.IsNotFound {
			out.Kind = KindNameUnknown
		}
	case errors.Is(err, syscall.ECONNREFUSED):
		out.Kind = KindRefused
	case isTimeout(err), errors.Is(err, context.DeadlineExceeded):
		// Also ETIMEDOUT: the kernel gave up before us.
		out.Kind = KindTimeout
	}
	return out
}
