// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"
	"fmt"
	"io"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// Accept performs the handshake with a client on conn, which it owns from then
// on: it is closed when the handshake fails. ctx bounds the handshake only.
//
// Clients up to Nix 2.23 and Lix wait for our version before they send theirs, so
// it goes out right after the client's magic. A client that is too old is told so;
// the error is then a *VersionError.
func Accept(ctx context.Context, conn io.ReadWriteCloser, opts ServerOptions) (*Server, error) {
	if opts.Operations == nil {
		opts.Operations = HookOperations()
	}
	if opts.Version == 0 {
		opts.Version = Protocol
	}
	stream := &aheadReader{src: conn}
	s := &Server{
		conn:   conn,
		stream: stream,
		in:     newDecoder(stream, opts.Limits, opts.StoreDir),
		out:    wire.NewWriter(conn),
		opts:   opts,
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = conn.Close()
		close(closed)
	})
	err := s.handshake()
	if !stop() {
		<-closed
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("handshake with the client: %w", err)
	}
	return s, nil
}

func (s *Server) handshake() error {
	d := s.in
	d.SetBudget(d.limits.Message)
	if magic := d.Uint64("magic"); d.Err() == nil && magic != magicClient {
		d.Fail("magic", "%#x is not how a Nix client begins", magic)
	}
	if err := d.Err(); err != nil {
		return err
	}
	s.out.Uint64(magicServer)
	s.out.Uint64(uint64(s.opts.Version))
	if err := s.out.Flush(); err != nil {
		return err
	}
	s.client = Version(d.Uint64("protocol version"))
	if err := d.Err(); err != nil {
		return err
	}
	d.version = min(s.opts.Version, s.client, Protocol)
	if s.client.Major() != Protocol.Major() {
		return &VersionError{Peer: "client", Version: s.client}
	}
	if d.version >= versionAffinity && d.Uint64("CPU affinity mark") != 0 {
		d.Uint64("CPU affinity")
	}
	if d.version >= versionReserve {
		d.Uint64("reserved space")
	}
	if err := d.Err(); err != nil {
		return err
	}
	if d.version >= versionDaemonString {
		s.out.String(s.opts.DaemonVersion)
	}
	if s.client < OldestProtocol {
		return s.refuse(&VersionError{Peer: "client", Version: s.client})
	}
	if d.version >= versionTrust {
		s.out.Uint64(uint64(s.opts.Trust))
	}
	s.out.Uint64(stderrLast)
	return s.out.Flush()
}

// refuse sends err in place of the handshake's end, in the form that the client
// understands, and returns it.
func (s *Server) refuse(err error) error {
	e := asRemoteError(err)
	if s.client >= versionErrors {
		e.encode(s.out)
	} else {
		e.encodeOld(s.out)
	}
	if werr := s.out.Flush(); werr != nil {
		return fmt.Errorf("%w (and it cannot be told: %w)", err, werr)
	}
	return err
}
