// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/metrics"
)

// Bounds on who reads metrics.
const (
	scrapeTimeout  = 10 * time.Second
	scrapeIdle     = 3 * time.Minute
	scrapeHeader   = 16 << 10
	scrapesAtATime = 4
	// scrapeGrace is what a scrape may take once the dispatcher has ended.
	scrapeGrace = 500 * time.Millisecond
)

// newMetrics returns a registry of its own, with what Go knows of this process.
func newMetrics(sources metrics.Sources) (*prometheus.Registry, *metrics.Metrics, error) {
	registry := prometheus.NewRegistry()
	err := errors.Join(
		registry.Register(collectors.NewGoCollector()),
		registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
	)
	m, failed := metrics.New(registry, sources)
	return registry, m, errors.Join(err, failed)
}

// serveMetrics serves what registry has on address, or nowhere if that is empty,
// until stop is called.
func serveMetrics(address string, registry *prometheus.Registry, log *slog.Logger) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve metrics (--metrics-address): %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtATime}))
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: scrapeTimeout,
		ReadTimeout:       scrapeTimeout,
		WriteTimeout:      scrapeTimeout,
		IdleTimeout:       scrapeIdle,
		MaxHeaderBytes:    scrapeHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("Metrics are no longer served", "error", err)
		}
	})
	log.Info("Serving metrics", "address", listener.Addr().String())
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), scrapeGrace)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
		serving.Wait()
	}, nil
}
