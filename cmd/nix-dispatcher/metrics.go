// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"nixbuilder.io/nix-builder-operator/internal/dispatch/metrics"
)

// scrapesAtATime bounds how many read metrics at once.
const scrapesAtATime = 4

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
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, fmt.Errorf("--metrics-address is %q: it must be an address such as :9464", address)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve metrics (--metrics-address): %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtATime}))
	return serveHTTP("metrics", listener, mux, log), nil
}
