// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package cluster runs a real Kubernetes cluster on this machine, for tests and
// for trying things by hand: API server, controller manager, scheduler,
// cluster DNS and, on one node or more, containerd, kubelet and kube-proxy.
// Real Nix builders of package nixlab join its network, where pods reach them
// by address and by name.
//
// Every node is a set of namespaces of its own (processes, mounts, network,
// control groups and more), and so is the network between them: nothing of
// the machine changes, no packet leaves it, and killing a node's first process
// is a faithful power failure. Nothing outlives the process that made a
// cluster, however that ends.
//
// It needs root, Linux with version 1 control groups, and the programs that
// [Parts] names.
package cluster
