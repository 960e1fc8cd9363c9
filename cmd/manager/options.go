// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"nixbuilder.io/nix-builder-operator/internal/sshconn"
)

// options are what the command line says.
type options struct {
	watchNamespaces         list
	leaderElect             bool
	leaderElectionNamespace string
	healthAddress           string
	metricsAddress          string
	metricsAuthorization    bool
	metricsCertDir          string
	deniedRanges            prefixes
	probeConcurrency        int
	keptConnections         bool
	logLevel                string
	logFormat               string
	version                 bool
}

// flagSet defines the flags; docs/flags.md lists them.
func (o *options) flagSet() *flag.FlagSet {
	flags := flag.NewFlagSet("manager", flag.ContinueOnError)
	flags.Var(&o.watchNamespaces, "watch-namespaces", "`namespaces` to work in, separated by commas; all when empty")
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "work only while holding a Lease, so that several replicas can run")
	flags.StringVar(&o.leaderElectionNamespace, "leader-election-namespace", "", "`namespace` of the Lease and of the events about it; the pod's own when empty")
	flags.StringVar(&o.healthAddress, "health-probe-bind-address", ":8081", "`address` to serve /healthz and /readyz on, without TLS; 0 for none")
	flags.StringVar(&o.metricsAddress, "metrics-bind-address", ":8443", "`address` to serve /metrics on, over TLS; 0 for none")
	flags.BoolVar(&o.metricsAuthorization, "metrics-authorization", true, "ask the API server whether who reads metrics may do so")
	flags.StringVar(&o.metricsCertDir, "metrics-cert-dir", "", "`directory` with tls.crt and tls.key for the metrics; a self-signed certificate when empty")
	o.deniedRanges = sshconn.DefaultDenied()
	flags.Var(&o.deniedRanges, "denied-ranges", "address `ranges` (CIDR, separated by commas) that are never connected to, whatever a host name resolves to; none when empty")
	flags.IntVar(&o.probeConcurrency, "probe-concurrency", 0, "how many SSH handshakes are computed at once; 8 per processor when 0")
	flags.BoolVar(&o.keptConnections, "kept-connections", true, "keep one idle SSH connection to each machine between probes, so that its loss shows at once")
	flags.StringVar(&o.logLevel, "log-level", "info", "least `level` to log: error, info or debug")
	flags.StringVar(&o.logFormat, "log-format", "json", "`format` of the log: json or console")
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
	config.RegisterFlags(flags)
	return flags
}

// parse reads the command line. What is wrong with it, and help, is printed to
// output.
func parse(arguments []string, output io.Writer) (*options, error) {
	o := &options{}
	flags := o.flagSet()
	flags.SetOutput(output)
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: every option is --name=value", flags.Arg(0))
	}
	if o.probeConcurrency < 0 {
		return nil, errors.New("--probe-concurrency must not be negative")
	}
	return o, nil
}

// list is a flag of several values separated by commas.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

// Set replaces the list.
func (l *list) Set(text string) error {
	*l = nil
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			*l = append(*l, item)
		}
	}
	return nil
}

// prefixes is a flag of several address ranges separated by commas.
type prefixes []netip.Prefix

func (p *prefixes) String() string {
	texts := make([]string, len(*p))
	for i, prefix := range *p {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ",")
}

// Set replaces the ranges.
func (p *prefixes) Set(text string) error {
	var texts list
	if err := texts.Set(text); err != nil {
		return err
	}
	*p = nil
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("%q is no address range such as 10.0.0.0/8 or fd00::/8", text)
		}
		*p = append(*p, prefix.Masked())
	}
	return nil
}
