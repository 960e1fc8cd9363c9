// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// leaseName is that of the Lease by which operators agree on their leader.
	leaseName = "nix-builder-operator"
	// stale is the age from which a Lease means that nobody leads: several times
	// what its holder renews it in.
	stale = time.Minute
)

// Operator says in a sentence what can be seen of the operator: whether one leads and
// where, and otherwise what to look at.
func (c *Client) Operator(ctx context.Context, now time.Time) string {
	const look = "look for its pods: kubectl get pods -A -l app.kubernetes.io/name=nix-builder-operator"
	var leases coordinationv1.LeaseList
	if err := c.api.List(ctx, &leases, client.MatchingFields{"metadata.name": leaseName}); err != nil {
		return "is the operator running, and does it watch this namespace? You may not look at its Lease; " + look
	}
	if len(leases.Items) == 0 {
		return "no operator has ever led in this cluster: it has no Lease " + leaseName + "; " + look
	}
	lease := leases.Items[0]
	for _, other := range leases.Items[1:] {
		if renewed(&other).After(renewed(&lease)) {
			lease = other
		}
	}
	holder, age := ptr.Deref(lease.Spec.HolderIdentity, ""), now.Sub(renewed(&lease))
	if holder == "" || age > stale {
		return fmt.Sprintf("no operator leads: nobody has renewed the Lease %s in namespace %s for %s; look at its pods there", leaseName, lease.Namespace, age.Round(time.Second))
	}
	return fmt.Sprintf("an operator leads in namespace %s (%s) but does not answer: its --watch-namespaces may lack this namespace, it may be older than this plugin, or its log says why", lease.Namespace, holder)
}

func renewed(lease *coordinationv1.Lease) time.Time {
	if lease.Spec.RenewTime == nil {
		return time.Time{}
	}
	return lease.Spec.RenewTime.Time
}
