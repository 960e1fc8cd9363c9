// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// scope is what one pass over one NixBuilder learns. Phases fill it; status and
// conditions are computed from it at the end.
type scope struct {
	// builder is the object as read, and as the cache shares it: it is not
	// changed.
	builder *v1alpha1.NixBuilder
	key     probe.Key
	now     time.Time

	accepted verdict
	// credentialsValid is about all Secrets; credentials are the usable ones.
	credentialsValid verdict
	credentials      []probe.Credential
	// jumpCredentials are those for the jump host.
	jumpCredentials []probe.Credential
	// snapshots are what the prober knows, by endpoint; nil while nothing is
	// probed.
	snapshots map[string]probe.Snapshot
	// pins are the host keys to hold endpoints to under TrustOnFirstUse.
	pins map[string]string

	requeueAfter time.Duration
}

// verdict is what is known about one condition.
type verdict struct {
	status  metav1.ConditionStatus
	reason  string
	message string
}

func holds(reason, message string) verdict {
	return verdict{status: metav1.ConditionTrue, reason: reason, message: message}
}

func fails(reason, message string) verdict {
	return verdict{status: metav1.ConditionFalse, reason: reason, message: message}
}

func unknown(reason, message string) verdict {
	return verdict{status: metav1.ConditionUnknown, reason: reason, message: message}
}

// probed reports whether there is anything to probe: an accepted spec and a key
// to log in with.
func (s *scope) probed() bool {
	return s.accepted.status == metav1.ConditionTrue && len(s.credentials) > 0
}

// wakeIn asks for another pass after at most d.
func (s *scope) wakeIn(d time.Duration) {
	if s.requeueAfter == 0 || d < s.requeueAfter {
		s.requeueAfter = d
	}
}
