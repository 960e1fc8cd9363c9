// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package nixbuilder

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// accept decides whether the spec can be worked with, from specs and pinned
// keys alone: the same objects always give the same answer.
func (r *Reconciler) accept(ctx context.Context, s *scope) error {
	if reason, message := checkSpec(s.builder); reason != "" {
		s.accepted = fails(reason, message)
		return nil
	}
	var list v1alpha1.NixBuilderList
	if err := r.client.List(ctx, &list, client.InNamespace(s.builder.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list NixBuilders: %w", err)
	}
	if message := duplicateOf(s.builder, list.Items); message != "" {
		s.accepted = fails(v1alpha1.ReasonDuplicateEndpoint, message)
		return nil
	}
	s.accepted = holds(v1alpha1.ReasonAccepted, "the spec can be worked with")
	return nil
}

// checkSpec finds what the API server's rules cannot. It returns no reason if
// there is nothing.
func checkSpec(builder *v1alpha1.NixBuilder) (reason, message string) {
	for i := range builder.Spec.Endpoints {
		endpoint := &builder.Spec.Endpoints[i]
		if strings.Contains(endpoint.Host, ":") {
			if _, err := netip.ParseAddr(endpoint.Host); err != nil {
				return v1alpha1.ReasonInvalidHost, fmt.Sprintf(
					"endpoint %s: host %q is neither a DNS name nor an IP address", endpoint.Name, endpoint.Host)
			}
		}
		for n, line := range endpoint.HostKeys {
			if _, _, err := probe.CheckHostKey(line); err != nil {
				return v1alpha1.ReasonInvalidKey, fmt.Sprintf(
					"endpoint %s: hostKeys[%d] is not a public key: copy the line from /etc/ssh/ssh_host_ed25519_key.pub on the machine",
					endpoint.Name, n)
			}
		}
	}
	if reason, message := checkJump(builder.Spec.ProxyJump); reason != "" {
		return reason, message
	}
	for n, line := range builder.Spec.HostCertificateAuthorities {
		if _, _, err := probe.CheckHostKey(line); err != nil {
			return v1alpha1.ReasonInvalidKey, fmt.Sprintf(
				"hostCertificateAuthorities[%d] is not a public key: copy the line from the authority's .pub file", n)
		}
	}
	return "", ""
}

// identity is something by which a machine is recognised in two objects.
type identity struct {
	id       string // the base64 part of a host key, or host and port
	hostKey  string // the host key's line, if it is one
	endpoint string
}

// what names the identity for people.
func (i identity) what() string {
	if i.hostKey == "" {
		return "host and port " + i.id
	}
	return "host key " + fingerprint(i.hostKey)
}

// remedy tells what to do about it in two objects.
func (i identity) remedy() string {
	if i.hostKey == "" {
		return "remove it from one of the two"
	}
	return "remove it from one of the two, or, if they are different machines, give each a host key of its own"
}

// identities returns everything by which the machines of a builder are
// recognised: host and port, the host keys of its spec, and those that its
// machines have shown.
func identities(builder *v1alpha1.NixBuilder) []identity {
	var all []identity
	for i := range builder.Spec.Endpoints {
		endpoint := &builder.Spec.Endpoints[i]
		all = append(all, identity{id: endpoint.Address() + behind(&builder.Spec), endpoint: endpoint.Name})
		lines := endpoint.HostKeys
		if status := builder.Status.Endpoint(endpoint.Name); status != nil && status.Address == endpoint.Address() && loggedIn(status) {
			lines = append(slices.Clip(lines), status.HostKey)
		}
		for _, line := range lines {
			if fields := strings.Fields(line); len(fields) > 1 {
				all = append(all, identity{id: fields[1], hostKey: line, endpoint: endpoint.Name})
			}
		}
	}
	return all
}

// loggedIn reports whether the machine at the status' address was logged in to,
// and so has shown the host key in it. A pin that an endpoint brought along from
// another address is still to be compared with anything.
func loggedIn(status *v1alpha1.EndpointStatus) bool {
	return status.Credential != "" || status.ProtocolVersion != ""
}

// duplicateOf returns a message if an older builder of the namespace has a
// machine of this one. The oldest is the one named.
func duplicateOf(builder *v1alpha1.NixBuilder, namespace []v1alpha1.NixBuilder) string {
	mine := map[string]identity{}
	for _, id := range identities(builder) {
		mine[id.id] = id
	}
	var owner *v1alpha1.NixBuilder
	var message string
	for i := range namespace {
		other := &namespace[i]
		if other.Name == builder.Name || !other.DeletionTimestamp.IsZero() || older(other, builder) > 0 ||
			owner != nil && older(other, owner) > 0 {
			continue
		}
		for _, theirs := range identities(other) {
			id, ok := mine[theirs.id]
			if ok && !refuted(other, theirs) && (proven(other, theirs) || !proven(builder, id)) {
				owner = other
				message = fmt.Sprintf("endpoint %s has the same %s as endpoint %s of NixBuilder %s, which is older; %s",
					id.endpoint, id.what(), theirs.endpoint, other.Name, id.remedy())
				break
			}
		}
	}
	return message
}

// refuted reports whether a machine has shown that a host key which its builder's
// spec claims for it is not its own: then it must not keep out the one that has it.
func refuted(builder *v1alpha1.NixBuilder, id identity) bool {
	status := builder.Status.Endpoint(id.endpoint)
	return id.hostKey != "" && status != nil && status.FailedCondition == v1alpha1.ConditionHostKeyVerified &&
		status.Reason == string(probe.ReasonHostKeyChanged) &&
		slices.ContainsFunc(builder.Spec.Endpoints, func(e v1alpha1.Endpoint) bool {
			return e.Name == id.endpoint && e.Address() == status.Address
		})
}

// proven reports whether the machine at an endpoint's address has shown a host key
// and was logged in to. That stays in status whatever becomes of the machine: a
// claim that another builder makes in its spec alone does not take the key from it
// whenever the other's machine happens to be away.
func proven(builder *v1alpha1.NixBuilder, id identity) bool {
	status := builder.Status.Endpoint(id.endpoint)
	if id.hostKey == "" || status == nil || !loggedIn(status) {
		return false
	}
	shown := strings.Fields(status.HostKey)
	return len(shown) > 1 && shown[1] == id.id &&
		slices.ContainsFunc(builder.Spec.Endpoints, func(e v1alpha1.Endpoint) bool {
			return e.Name == id.endpoint && e.Address() == status.Address
		})
}

// older orders builders by age, then by name.
func older(a, b *v1alpha1.NixBuilder) int {
	return cmp.Or(
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		strings.Compare(a.Name, b.Name),
	)
}

// related reports whether two builders have a machine in common.
func related(a, b *v1alpha1.NixBuilder) bool {
	ids := map[string]bool{}
	for _, id := range identities(a) {
		ids[id.id] = true
	}
	return slices.ContainsFunc(identities(b), func(i identity) bool { return ids[i.id] })
}
