// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// leisure is the least time between two writes of a namespace's ConfigMap, on
	// average. What tells dispatchers alone something new always waits for it:
	// machines that fail now in this way and now in that would otherwise have all of
	// it written for each of their probes.
	leisure = 5 * time.Second
	// urgentInARow is how many writes may follow each other without a pause where
	// they matter to ssh: machines that are lost or come back. One that flaps must
	// wait like the others.
	urgentInARow = 6
)

// inARow is how many writes may follow each other without a pause, the next one
// included.
func inARow(current *corev1.ConfigMap, data map[string]string, owners []owner) int {
	if urgent(current, data, owners) {
		return urgentInARow
	}
	return 1
}

// urgent reports whether something besides the list for dispatchers differs:
// those find out by themselves whom they can reach, but ssh and garbage
// collector have nothing else to go by.
func urgent(current *corev1.ConfigMap, data map[string]string, owners []owner) bool {
	for key, text := range data {
		if key != KeyBuilders && current.Data[key] != text {
			return true
		}
	}
	return !hasOwners(current, owners)
}

// hasOwners reports whether the ConfigMap has a reference to each owner.
func hasOwners(current *corev1.ConfigMap, owners []owner) bool {
	for _, owner := range owners {
		if !slices.ContainsFunc(current.OwnerReferences, func(reference metav1.OwnerReference) bool { return reference.UID == owner.uid }) {
			return false
		}
	}
	return true
}
