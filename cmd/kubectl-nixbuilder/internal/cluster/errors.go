// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package cluster

import (
	"errors"
	"fmt"
	"net"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
)

// ConflictError means that a change was refused since the object has changed.
type ConflictError struct{ Err error }

// Error says which object.
func (e *ConflictError) Error() string { return e.Err.Error() }

// Unwrap returns what the API server says.
func (e *ConflictError) Unwrap() error { return e.Err }

// explain says what could not be done, why, and what to do about it.
func explain(err error, host, what string) error {
	var discovery *discovery.ErrGroupDiscoveryFailed
	var network *net.OpError
	switch {
	case meta.IsNoMatchError(err):
		return fmt.Errorf("%s: the cluster at %s does not know NixBuilders; install the operator, or choose another cluster with --context", what, host)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: the API server at %s does not know you; log in anew: %w", what, host, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: you may not; ask for a role with that right: %w", what, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s: there is none of that name", what)
	case apierrors.IsConflict(err), apierrors.IsInvalid(err) && testFailed(err):
		return &ConflictError{fmt.Errorf("%s: somebody else has changed it meanwhile: %w", what, err)}
	case errors.As(err, &network), errors.As(err, &discovery):
		return fmt.Errorf("%s: the API server at %s cannot be reached: %w", what, host, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// testFailed tells whether a JSON patch was refused because one of its tests did not
// hold, for which the API server has the same status as for an invalid object, but no
// field.
func testFailed(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	return details == nil || len(details.Causes) == 0
}
