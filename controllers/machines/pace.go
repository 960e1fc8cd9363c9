// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// leisure is the least time between a write of a namespace's ConfigMap and one
// that tells dispatchers alone something new. Machines that fail now in this way
// and now in that would otherwise have all of it written for each of their probes.
const leisure = 5 * time.Second

// pace remembers when the ConfigMap of each namespace was written last. It starts
// empty: the first write after a restart waits for nothing.
type pace struct {
	mu      sync.Mutex
	written map[string]time.Time
}

// wait returns how long a write that is not urgent has to wait; 0 is not at all.
func (p *pace) wait(namespace string, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, ok := p.written[namespace]
	if !ok || now.Before(last) { // the clock was set
		return 0
	}
	return max(leisure-now.Sub(last), 0)
}

func (p *pace) note(namespace string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.written == nil {
		p.written = make(map[string]time.Time)
	}
	p.written[namespace] = now
}

func (p *pace) forget(namespace string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.written, namespace)
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
