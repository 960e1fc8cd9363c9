// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package controllers

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/ssh"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	controllerconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/controllers"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
	"nixbuilder.io/nix-builder-operator/internal/nix/daemon/daemontest"
	"nixbuilder.io/nix-builder-operator/internal/probe"
	"nixbuilder.io/nix-builder-operator/test/sshtest"
)

// operator is the whole operator in this process: manager, prober, controllers.
type operator struct {
	registry *prometheus.Registry
	log      *syncBuffer
	dials    atomic.Int64
	stop     func()
}

// startOperator runs an operator over some namespaces until the end of the spec,
// and logs everything that can be logged. With a lease namespace it takes part
// in the election of a leader there.
func startOperator(leaseNamespace string, namespaces ...string) *operator {
	GinkgoHelper()
	o := &operator{registry: prometheus.NewRegistry(), log: &syncBuffer{}}
	logger := logr.FromSlogHandler(slog.NewTextHandler(io.MultiWriter(o.log, GinkgoWriter), &slog.HandlerOptions{Level: slog.Level(-10)}))
	manager, err := ctrl.NewManager(environment.Config(), ctrl.Options{
		Scheme:                        scheme,
		Logger:                        logger,
		Cache:                         controllers.CacheOptions(namespaces),
		Client:                        controllers.ClientOptions(),
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		Controller:                    controllerconfig.Controller{SkipNameValidation: ptr.To(true)},
		LeaderElection:                leaseNamespace != "",
		LeaderElectionID:              "nix-builder-operator",
		LeaderElectionNamespace:       leaseNamespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 ptr.To(8 * time.Second),
		RenewDeadline:                 ptr.To(5 * time.Second),
		RetryPeriod:                   ptr.To(500 * time.Millisecond),
	})
	Expect(err).NotTo(HaveOccurred())
	Expect(controllers.SetupAll(manager, controllers.Options{
		Registerer:      o.registry,
		KeepConnections: true,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			o.dials.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	})).To(Succeed())

	running, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		defer GinkgoRecover()
		Expect(manager.Start(running)).To(Succeed())
	})
	o.stop = sync.OnceFunc(func() {
		cancel()
		wait.Wait()
	})
	DeferCleanup(o.stop)
	return o
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// machine is a builder in this process: an SSH server with a Nix behind it.
type machine struct {
	*sshtest.Server
	run sshtest.Exec
}

// startMachine runs a machine until the end of the spec.
func startMachine() *machine {
	GinkgoHelper()
	nix := daemontest.New(daemontest.Options{Trust: daemon.Trusted})
	DeferCleanup(nix.Close)
	m := &machine{run: sshtest.NixShell(nix.Serve)}
	m.Server = sshtest.New(GinkgoTB(), sshtest.Behavior{Exec: m.run})
	return m
}

// endpoint describes the machine to a NixBuilder.
func (m *machine) endpoint(name string) v1alpha1.Endpoint {
	GinkgoHelper()
	host, portText, err := net.SplitHostPort(m.Addr())
	Expect(err).NotTo(HaveOccurred())
	port, err := strconv.Atoi(portText)
	Expect(err).NotTo(HaveOccurred())
	return v1alpha1.Endpoint{Name: name, Host: host, Port: int32(port), HostKeys: []string{hostKeyOf(m.Server)}}
}

// hostKeyOf returns the host key of a server as people write it.
func hostKeyOf(server *sshtest.Server) string {
	GinkgoHelper()
	key, _, err := probe.CheckHostKey(string(ssh.MarshalAuthorizedKey(server.HostKey())))
	Expect(err).NotTo(HaveOccurred())
	return key
}
