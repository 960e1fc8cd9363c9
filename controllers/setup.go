// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package controllers puts the operator together. What it does lies in the
// packages below it, one for each controller.
package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers/machines"
	"nixbuilder.io/nix-builder-operator/controllers/nixbuilder"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// Options say how the controllers work. The zero value is good for use.
type Options struct {
	// Dial connects to builders, and refuses addresses that must not be connected
	// to. Nil is the prober's own, which denies loopback, link-local and metadata
	// addresses.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// ProbeConcurrency bounds how many SSH handshakes are computed at once; 0 is
	// the prober's default.
	ProbeConcurrency int
	// KeepConnections allows one idle connection to each machine between probes.
	KeepConnections bool
	// Registerer takes the metrics; nil is that of the manager's metrics server.
	Registerer prometheus.Registerer
}

// Scheme returns a scheme with all kinds that the operator works with.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register kinds of Kubernetes: %w", err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register kinds of %s: %w", v1alpha1.GroupName, err)
	}
	return scheme, nil
}

// CacheOptions say what a manager has to keep in its cache: NixBuilders and the
// ConfigMaps that are rendered from them, in the given namespaces, or in all.
func CacheOptions(namespaces []string) cache.Options {
	options := cache.Options{
		ByObject: map[client.Object]cache.ByObject{&corev1.ConfigMap{}: machines.CacheOptions()},
	}
	for _, namespace := range namespaces {
		if options.DefaultNamespaces == nil {
			options.DefaultNamespaces = map[string]cache.Config{}
		}
		options.DefaultNamespaces[namespace] = cache.Config{}
	}
	return options
}

// ClientOptions keep a manager's client from caching Secrets, which would take
// the right to list them.
func ClientOptions() client.Options {
	return client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}}
}

// SetupAll adds prober and controllers to a manager. All of them run on the
// leader alone: there is one that connects to builders and one that writes.
func SetupAll(mgr ctrl.Manager, options Options) error {
	if options.Registerer == nil {
		options.Registerer = metrics.Registry
	}
	builderMetrics, err := nixbuilder.NewMetrics(options.Registerer)
	if err != nil {
		return err
	}
	machinesMetrics, err := machines.NewMetrics(options.Registerer)
	if err != nil {
		return err
	}
	wakeups := &nixbuilder.Wakeups{}
	prober := probe.New(probe.Options{
		Dial:            options.Dial,
		OnChange:        wakeups.Notify,
		OnResult:        builderMetrics.ProbeEnded,
		OnLoss:          builderMetrics.ConnectionLost,
		MaxHandshakes:   options.ProbeConcurrency,
		KeepConnections: options.KeepConnections,
		Log:             slog.New(logr.ToSlogHandler(mgr.GetLogger().WithName("probe"))),
	})
	if err := mgr.Add(leaderOnly{prober}); err != nil {
		return fmt.Errorf("add the prober: %w", err)
	}
	recorder := mgr.GetEventRecorder("nix-builder-operator")
	err = nixbuilder.NewReconciler(nixbuilder.Options{
		Client:   mgr.GetClient(),
		Secrets:  mgr.GetAPIReader(),
		Prober:   prober,
		Wakeups:  wakeups,
		Recorder: recorder,
		Metrics:  builderMetrics,
	}).Register(mgr)
	if err != nil {
		return err
	}
	return machines.NewReconciler(machines.Options{
		Client:   mgr.GetClient(),
		Uncached: mgr.GetAPIReader(),
		Recorder: recorder,
		Metrics:  machinesMetrics,
	}).Register(mgr)
}

// leaderOnly runs the prober on the leader alone.
type leaderOnly struct{ *probe.Prober }

// NeedLeaderElection is what the manager asks.
func (leaderOnly) NeedLeaderElection() bool { return true }
