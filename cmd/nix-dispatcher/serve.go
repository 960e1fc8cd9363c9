// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/dispatch"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/clientdir"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/fleet"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/metrics"
	"nixbuilder.io/nix-builder-operator/internal/dispatch/statuspage"
	"nixbuilder.io/nix-builder-operator/internal/inventory"
	"nixbuilder.io/nix-builder-operator/internal/scheduler"
	"nixbuilder.io/nix-builder-operator/internal/spool"
	"nixbuilder.io/nix-builder-operator/internal/version"
)

// serve runs a dispatcher until ctx ends, and then lets builds finish.
func serve(ctx context.Context, o options) (err error) {
	started, log := time.Now(), o.logger(os.Stderr)
	if err := o.checkFiles(); err != nil {
		return err
	}
	store, err := spool.Open(spool.Options{Dir: o.spoolDir, MaxBytes: int64(o.spoolSize), Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	directory := clientdir.New(clientdir.Options{
		Path: o.volume, ClientPath: o.clientPath, Helper: o.helper, MaxLines: o.maxLines,
	})
	if err := directory.Install(); err != nil {
		return err
	}
	listener, err := listen(directory.Socket())
	if err != nil {
		return err
	}
	defer listener.Close()
	ledger := scheduler.NewLocal(scheduler.LocalOptions{WaitLimit: time.Duration(o.limits.wait)})
	builders := newFleet(o, ledger, log)
	defer builders.Close()
	var server *dispatch.Server
	registry, recorder, err := newMetrics(metrics.Sources{
		Ledger: ledger, Fleet: builders, Spool: store,
		Connections: func() int { return server.Connections() },
		Phases:      func() map[string]int { return server.Phases() },
	})
	if err != nil {
		return err
	}
	server = dispatch.NewServer(dispatch.Options{
		Scheduler: ledger,
		Builders:  dispatch.OnFleet(builders),
		Classes:   directory,
		Spool:     store,
		Recorder:  recorder,
		Limits:    o.dispatchLimits(),
		Version:   version.String(),
		Logger:    log,
	})
	stopObservers, err := serveObservers(o, registry, statuspage.Sources{
		Started: started, Server: server, Ledger: ledger, Fleet: builders, Spool: store,
	}, log)
	if err != nil {
		return err
	}
	defer stopObservers()
	// Builders are followed as long as builds run, also after SIGTERM.
	known, stop := followInBackground(context.WithoutCancel(ctx), o, builders, directory, log)
	defer stop()
	awaitBuilders(ctx, known)
	return serveUntil(ctx, server, listener, time.Duration(o.shutdownTimeout), log)
}

// followInBackground follows the file of builders until stop is called, which waits for
// the end of that. known is closed when the first list was applied.
func followInBackground(ctx context.Context, o options, builders *fleet.Fleet, directory *clientdir.Directory, log *slog.Logger) (known <-chan struct{}, stop func()) {
	following, cancel := context.WithCancel(ctx)
	documents := inventory.Watch(following, o.builders, inventory.WatchOptions{
		Logger: log, File: inventory.FileOptions{User: o.user},
	})
	applied := make(chan struct{})
	var follower sync.WaitGroup
	follower.Go(func() { follow(documents, builders, directory, log, sync.OnceFunc(func() { close(applied) })) })
	return applied, func() {
		cancel()
		follower.Wait()
	}
}

// newFleet returns a fleet that tells ledger of its builders.
func newFleet(o options, ledger *scheduler.Local, log *slog.Logger) *fleet.Fleet {
	return fleet.New(fleet.Options{
		Dial:        fleet.DialSSH(fleet.SSHOptions{KeysDir: o.keysDir, IdentityFile: o.identityFile, KnownHosts: o.knownHosts}),
		OnChange:    ledger.Update,
		OpenTimeout: time.Duration(o.openTimeout),
		Jitter:      firstJitter,
		Logger:      log,
	})
}

// firstJitter spreads the first connections of dispatchers that start at once: sshd
// drops some of ten or more that have not logged in.
const firstJitter = 100 * time.Millisecond

// builderPatience is how long clients wait in the socket's queue for a first list of
// builders.
const builderPatience = 2 * time.Second

// awaitBuilders waits for the first list of builders. After a restart clients still
// have the machines file of the dispatcher before, and would be told that its lines
// are out of date.
func awaitBuilders(ctx context.Context, known <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, builderPatience)
	defer cancel()
	select {
	case <-known:
	case <-ctx.Done():
	}
}

// serveUntil serves until ctx ends and then gives builds some time to finish.
func serveUntil(ctx context.Context, server *dispatch.Server, listener net.Listener, grace time.Duration, log *slog.Logger) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Info("Dispatcher started", "socket", listener.Addr().String(), "version", version.String())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	log.Info("Dispatcher stops; running builds may finish", "within", grace)
	began := time.Now()
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := server.Shutdown(limit); err != nil {
		log.Warn("Builds were cut short: they took longer than --shutdown-timeout", "within", grace)
	}
	log.Info("Dispatcher stopped", "seconds", time.Since(began).Seconds())
	return nil
}

// follow applies every new list of builders, and reports when it has one.
func follow(documents <-chan inventory.Document, builders *fleet.Fleet, directory *clientdir.Directory, log *slog.Logger, applied func()) {
	for document := range documents {
		builders.Update(document)
		changed, err := directory.Publish(builders.Builders())
		if err != nil {
			log.Error("Machines file for clients is not complete", "error", err)
		}
		if changed {
			log.Info("Wrote the machines file for clients", "builders", len(document.Builders))
		}
		applied()
	}
}

// listen opens the socket for everybody: whoever sees the directory may build. A
// socket that an earlier process left is replaced, one that is in use is not.
func listen(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another dispatcher serves %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove an old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
