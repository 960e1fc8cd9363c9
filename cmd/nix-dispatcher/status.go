// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"fmt"
	"log/slog"
	"net"
	"strings"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/statuspage"
)

// checkLoopback fails unless address can be reached from this machine, or pod, only.
// The status page names derivations and asks nobody who they are.
func checkLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--status-address is %q: it must be an address such as 127.0.0.1:9465", address)
	}
	if ip := net.ParseIP(host); strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("--status-address is %q: the status page asks nobody who they are, so it needs a loopback address such as 127.0.0.1:9465; forward the port to look at it from elsewhere", address)
}

// serveStatus serves the status page on address, or nowhere if that is empty, until
// stop is called.
func serveStatus(address string, sources statuspage.Sources, log *slog.Logger) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	page, err := statuspage.New(statuspage.Options{Read: func() statuspage.Document { return statuspage.Gather(sources) }})
	if err != nil {
		return nil, fmt.Errorf("status page: %w", err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve the status page (--status-address): %w", err)
	}
	// A name may mean anything.
	if bound, ok := listener.Addr().(*net.TCPAddr); !ok || !bound.IP.IsLoopback() {
		listener.Close()
		return nil, fmt.Errorf("--status-address is %q, which is %s here and no loopback address", address, listener.Addr())
	}
	return serveHTTP("status page", listener, page, log), nil
}
