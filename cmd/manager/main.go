// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command manager is the operator: it probes the builders that NixBuilders
// describe and publishes them to the clients of their namespaces.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers"
	"nixbuilder.io/nix-builder-operator/internal/sshconn"
	"nixbuilder.io/nix-builder-operator/internal/version"
)

const (
	leaderElectionID = "nix-builder-operator"
	// shutdownTimeout bounds how long passes and probes under way are waited for.
	shutdownTimeout = 5 * time.Second
	// readyTimeout bounds what /readyz asks the API server.
	readyTimeout = 3 * time.Second
)

func main() {
	err := run(ctrl.SetupSignalHandler(), os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "manager:", err)
		os.Exit(1)
	}
}

// run is the whole program. It returns when ctx ends or leadership is lost.
func run(ctx context.Context, arguments []string, stdout, stderr io.Writer) error {
	o, err := parse(arguments, stderr)
	if err != nil {
		return err
	}
	if o.version {
		_, err := fmt.Fprintln(stdout, version.String())
		return err
	}
	logger, err := newLogger(o.logLevel, o.logFormat, stderr)
	if err != nil {
		return err
	}
	ctrl.SetLogger(logger)
	klog.SetLogger(logger.WithName("client-go"))

	restConfig, err := config.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server (no --kubeconfig, and not in a cluster?): %w", err)
	}
	managerOptions, err := o.manager()
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(restConfig, managerOptions)
	if err != nil {
		return fmt.Errorf("connect to the API server at %s: %w", restConfig.Host, err)
	}
	err = controllers.SetupAll(mgr, controllers.Options{
		Dial:             sshconn.NewDialer(o.deniedRanges),
		ProbeConcurrency: o.probeConcurrency,
		KeepConnections:  o.keptConnections,
	})
	if err != nil {
		return err
	}
	if err := errors.Join(
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("nixbuilders", served(mgr.GetAPIReader(), o.watchNamespaces)),
	); err != nil {
		return fmt.Errorf("add health checks: %w", err)
	}
	logger.Info("Starting operator", "version", version.String(), "namespaces", o.watchNamespaces.String(), "deniedRanges", o.deniedRanges.String())
	return mgr.Start(ctx)
}

// manager turns the command line into the options of a manager.
func (o *options) manager() (ctrl.Options, error) {
	scheme, err := controllers.Scheme()
	if err != nil {
		return ctrl.Options{}, err
	}
	metrics := metricsserver.Options{
		BindAddress:   o.metricsAddress,
		SecureServing: true,
		CertDir:       o.metricsCertDir,
		// HTTP/2 lets one connection ask for more than it has to pay for.
		TLSOpts: []func(*tls.Config){func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }},
	}
	if o.metricsAuthorization {
		metrics.FilterProvider = filters.WithAuthenticationAndAuthorization
	}
	return ctrl.Options{
		Scheme:                        scheme,
		Cache:                         controllers.CacheOptions(o.watchNamespaces),
		Client:                        controllers.ClientOptions(),
		Metrics:                       metrics,
		HealthProbeBindAddress:        o.healthAddress,
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              leaderElectionID,
		LeaderElectionNamespace:       o.leaderElectionNamespace,
		LeaderElectionReleaseOnCancel: true, // run returns right after the manager ends
		GracefulShutdownTimeout:       ptr.To(shutdownTimeout),
	}, nil
}

// served returns a check that passes once the API server has served
// NixBuilders. It goes on to pass, on the leader and on others: an API server
// that is away later is no reason to call the operator broken.
func served(reader client.Reader, namespaces []string) healthz.Checker {
	var seen atomic.Bool
	scope := []client.ListOption{client.Limit(1)}
	if len(namespaces) > 0 {
		scope = append(scope, client.InNamespace(namespaces[0]))
	}
	return func(request *http.Request) error {
		if seen.Load() {
			return nil
		}
		ctx, cancel := context.WithTimeout(request.Context(), readyTimeout)
		defer cancel()
		if err := reader.List(ctx, &v1alpha1.NixBuilderList{}, scope...); err != nil {
			return fmt.Errorf("the API server does not serve NixBuilders (is the CRD installed?): %w", err)
		}
		seen.Store(true)
		return nil
	}
}
