// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package machines publishes the NixBuilders of each namespace in the
// ConfigMap nix-machines: as a machines file for stock Nix, with what ssh
// needs to follow it, and as the list that dispatchers read.
//
// What is published is a pure function of specs and statuses (see [Desired]);
// the old ConfigMap has no part in it, and equal input gives equal bytes, so
// that a namespace in which nothing changes causes no writes. Nothing but the
// NixBuilders of a namespace goes into its ConfigMap, and Secrets are never
// read here.
package machines

// ConfigMapName is the name of the ConfigMap in every namespace that has a
// NixBuilder.
const ConfigMapName = "nix-machines"

// Keys of the ConfigMap.
const (
	// KeyMachines is the machines file for clients that reach builders
	// themselves.
	KeyMachines = "machines"
	// KeyBuilders is the list of all builders for dispatchers; see package
	// inventory.
	KeyBuilders = "builders.json"
	// KeyKnownHosts and KeySSHConfig are files of OpenSSH: they resolve the
	// aliases in the machines file.
	KeyKnownHosts = "known_hosts"
	KeySSHConfig  = "ssh_config"
	// KeyNixConf is what a client includes in its nix.conf.
	KeyNixConf = "nix.conf"
)

// Paths in a client's container. They are written into the files, so that a
// client has to mount the ConfigMap and its keys there.
const (
	// MountPath is where the ConfigMap is mounted, as a whole.
	MountPath = "/etc/nix-machines"
	// KeysPath is the directory below which each Secret is mounted under its
	// own name.
	KeysPath = "/etc/nix-keys"
)

const (
	// ManagedByLabel and ManagedBy mark the ConfigMaps that are ours. Removing
	// the label from one takes it out of our hands.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "nix-builder-operator"
	// ContentHashAnnotation is a hash of everything that we apply. Consumers
	// may use it to tell whether they have the newest version.
	ContentHashAnnotation = "nixbuilder.io/content-hash"
	// FieldOwner is the name under which we apply fields.
	FieldOwner = "nix-builder-operator/machines"
)

// MaxContentSize is the most bytes that keys and values may have together. A
// ConfigMap is refused by the API server a little above 1 MiB.
const MaxContentSize = 900 << 10
