// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/statuspage"
)

// Bounds on who reads metrics or the status page.
const (
	readerTimeout = 10 * time.Second
	readerIdle    = 3 * time.Minute
	readerHeader  = 16 << 10
	// readerGrace is what an answer may take once the dispatcher has ended.
	readerGrace = 500 * time.Millisecond
)

// serveObservers serves metrics and status page where the flags say so, until stop is
// called.
func serveObservers(o options, registry *prometheus.Registry, sources statuspage.Sources, log *slog.Logger) (stop func(), err error) {
	stopMetrics, err := serveMetrics(o.metricsAddress, registry, log)
	if err != nil {
		return nil, err
	}
	stopStatus, err := serveStatus(o.statusAddress, sources, log)
	if err != nil {
		stopMetrics()
		return nil, err
	}
	return func() {
		stopStatus()
		stopMetrics()
	}, nil
}

// serveHTTP serves what, until stop is called, which closes the listener.
func serveHTTP(what string, listener net.Listener, handler http.Handler, log *slog.Logger) (stop func()) {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readerTimeout,
		ReadTimeout:       readerTimeout,
		WriteTimeout:      readerTimeout,
		IdleTimeout:       readerIdle,
		MaxHeaderBytes:    readerHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("HTTP server has failed", "serving", what, "error", err)
		}
	})
	log.Info("Serving "+what, "address", listener.Addr().String())
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), readerGrace)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
		serving.Wait()
	}
}
