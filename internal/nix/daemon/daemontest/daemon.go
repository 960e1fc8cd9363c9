// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package daemontest is a nix-daemon for tests: it runs in the test's process,
// keeps its store in memory, "builds" by callback and misbehaves on request.
//
// It speaks over any connection, also net.Pipe, and so works inside a bubble of
// testing/synctest.
package daemontest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/storepath"
)

// Options configures a Daemon.
type Options struct {
	// Version is the protocol version announced, default daemon.Protocol; clients
	// of this project see real ones from 1.21 to 1.38.
	Version daemon.Version
	// DaemonVersion is the Nix version announced, default "2.34.8".
	DaemonVersion string
	// Trust is how the client is treated, and what the handshake says from 1.35
	// on. With NotTrusted the daemon refuses what Nix refuses. TrustUnknown is
	// announced as such and treated as trusted.
	Trust daemon.Trust
	// StoreDir is the store directory, default /nix/store.
	StoreDir string
	// Build runs a build. The default, and what a nil result stands for, is
	// success with outputs made by Build.DefaultOutputs. ctx ends when the client
	// hangs up.
	Build func(ctx context.Context, b *Build) *daemon.BuildResult
	// Before is called with every request before it is carried out. It may block
	// to delay the answer (ctx ends when the Daemon is closed, and when the client
	// hangs up), return ErrHangUp to close the connection without an answer, or
	// another error to answer with it.
	Before func(ctx context.Context, c Call) error
	// Substitutes are paths that the daemon says it could fetch, and fetches (as
	// files holding their own path) when asked to.
	Substitutes []string
}

// ErrHangUp makes a Daemon close the connection without an answer.
var ErrHangUp = errors.New("hang up")

// Call is one request as Options.Before sees it.
type Call struct {
	// Session numbers the connections, N the requests on this one, both from 1.
	Session, N int
	Request    daemon.Request
}

// At returns an Options.Before that runs f on the n-th request of each
// connection and lets others pass.
func At(n int, f func(ctx context.Context) error) func(context.Context, Call) error {
	return func(ctx context.Context, c Call) error {
		if c.N != n {
			return nil
		}
		return f(ctx)
	}
}

// HangUp is for At: the daemon closes the connection.
func HangUp(context.Context) error { return ErrHangUp }

// Silent is for At: the daemon never answers.
func Silent(ctx context.Context) error {
	<-ctx.Done()
	return ErrHangUp
}

// Refuse is for At: the daemon answers with an error of that text.
func Refuse(text string) func(context.Context) error {
	return func(context.Context) error { return errors.New(text) }
}

// Daemon is a nix-daemon with one store and any number of connections.
type Daemon struct {
	opts   Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	store    map[string]entry
	sessions int
	ops      []daemon.Operation
	builds   []string
	// roots are the paths that each connection keeps from Collect.
	roots map[*session]map[string]bool
}

// New returns a Daemon with an empty store. Close ends it.
func New(opts Options) *Daemon {
	if opts.DaemonVersion == "" {
		opts.DaemonVersion = "2.34.8"
	}
	if opts.StoreDir == "" {
		opts.StoreDir = storepath.DefaultDir
	}
	d := &Daemon{opts: opts, store: map[string]entry{}, roots: map[*session]map[string]bool{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Close ends all connections and waits for them.
func (d *Daemon) Close() {
	d.cancel()
	d.wg.Wait()
}

// Dial returns the client's end of a new connection to the daemon.
func (d *Daemon) Dial() net.Conn {
	client, server := net.Pipe()
	d.wg.Go(func() { _ = d.Serve(server) })
	return client
}

// Serve runs a connection to its end and closes it. It returns nil when the
// client closed it between requests.
func (d *Daemon) Serve(conn io.ReadWriteCloser) error {
	defer context.AfterFunc(d.ctx, func() { _ = conn.Close() })()
	srv, err := daemon.Accept(d.ctx, conn, daemon.ServerOptions{
		DaemonVersion: d.opts.DaemonVersion,
		Trust:         d.opts.Trust,
		StoreDir:      d.opts.StoreDir,
		Version:       d.opts.Version,
		Operations:    append(daemon.HookOperations(), daemon.OpQuerySubstitutablePaths, daemon.OpBuildPaths, daemon.OpAddTempRoot),
	})
	if err != nil {
		return err
	}
	defer func() { _ = srv.Close() }()
	d.mu.Lock()
	d.sessions++
	s := &session{daemon: d, srv: srv, call: Call{Session: d.sessions}}
	d.roots[s] = map[string]bool{}
	d.mu.Unlock()
	defer d.forget(s)
	return s.run()
}

// Sessions returns how many connections there have been.
func (d *Daemon) Sessions() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sessions
}

// Operations returns all operations received so far, in order.
func (d *Daemon) Operations() []daemon.Operation {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]daemon.Operation(nil), d.ops...)
}

// Builds returns the derivation paths of all builds begun so far, in order.
func (d *Daemon) Builds() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.builds...)
}
