// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import "fmt"

// Every cluster has networks of its own, so all have the same addresses: nodes
// and builders share one Ethernet, a bridge on the first node; each node has a
// network for its pods.
const (
	// domain is that of Services.
	domain = "cluster.local"
	// builderDomain is that of builders.
	builderDomain = "builders.test"

	serviceNetwork    = "10.96.0.0/16"
	apiServiceAddress = "10.96.0.1"
	dnsServiceAddress = "10.96.0.10"
	podNetworks       = "10.244.0.0/16"

	// maxNodes is how many nodes a cluster has credentials for.
	maxNodes = 5
	// firstBuilder is the last part of the first builder's address.
	firstBuilder = 101
)

func nodeName(n int) string       { return fmt.Sprintf("node%d", n) }
func nodeAddress(n int) string    { return fmt.Sprintf("10.245.0.%d", n) }
func podNetwork(n int) string     { return fmt.Sprintf("10.244.%d.0/24", n) }
func firstPod(n int) string       { return fmt.Sprintf("10.244.%d.10", n) }
func serverURL() string           { return "https://" + nodeAddress(1) + ":6443" }
func builderName(n string) string { return n + "." + builderDomain }
