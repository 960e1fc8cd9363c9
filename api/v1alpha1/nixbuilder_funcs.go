// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package v1alpha1

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ActiveAt reports whether the cordon holds at the given time: it is there and
// its until, if any, lies ahead.
func (c *Cordon) ActiveAt(now time.Time) bool {
	return c != nil && (c.Until == nil || now.Before(c.Until.Time))
}

// ActiveCordon returns the cordon under which an endpoint of this builder is at
// the given time, the endpoint's own before the builder's, or nil.
func (s *NixBuilderSpec) ActiveCordon(endpoint *Endpoint, now time.Time) *Cordon {
	if endpoint.Cordon.ActiveAt(now) {
		return endpoint.Cordon
	}
	if s.Cordon.ActiveAt(now) {
		return s.Cordon
	}
	return nil
}

// Lacking returns the mandatory features of this spec that the machine is known to
// lack. Where there are any it can do no build at all: those that ask for them fail
// there, and others are not for it.
func (s *NixBuilderSpec) Lacking(machine *EndpointStatus) []string {
	return slices.DeleteFunc(slices.Clone(s.MandatoryFeatures), func(feature string) bool {
		return !slices.Contains(machine.RefutedFeatures, feature)
	})
}

// Address returns host and port in the one spelling that status uses.
func (e *Endpoint) Address() string {
	host := e.Host
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(e.Port)))
}

// Endpoint returns the status of the endpoint of that name, or nil.
func (s *NixBuilderStatus) Endpoint(name string) *EndpointStatus {
	for i := range s.Endpoints {
		if s.Endpoints[i].Name == name {
			return &s.Endpoints[i]
		}
	}
	return nil
}

// Condition returns the condition of that type, or nil.
func (s *NixBuilderStatus) Condition(conditionType string) *metav1.Condition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == conditionType {
			return &s.Conditions[i]
		}
	}
	return nil
}

// InUse reports whether builds are placed on the machine, apart from a cordon.
func (s *EndpointStatus) InUse() bool {
	return s.State == EndpointHealthy || s.State == EndpointSuspect
}
