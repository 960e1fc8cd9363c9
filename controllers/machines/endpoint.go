// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package machines

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"nixbuilder.io/nix-builder-operator/api/v1alpha1"
	"nixbuilder.io/nix-builder-operator/internal/nix/machines"
	"nixbuilder.io/nix-builder-operator/internal/probe"
)

// maxSlots is the most jobs that a spec may declare, and what discovered
// numbers are cut to.
const maxSlots = 1024

// endpoint is one machine of an accepted NixBuilder with all that is decided
// about it before others are looked at.
type endpoint struct {
	builder string // name of the NixBuilder
	name    string
	host    string
	port    int
	user    string
	program string // path of nix-daemon, "" for PATH's
	jump    *jump  // nil where it is reached directly

	systems, features, mandatory []string // sorted sets
	lacking                      []string // mandatory features that it turned out to lack
	hostKeys, authorities        []string // "type base64", sorted sets
	secrets                      []string // in the order in which they are tried
	secret                       string   // the one in use
	jobs, speed                  int

	state  v1alpha1.EndpointStatus // zero where nothing is known of the machine
	cordon *v1alpha1.Cordon        // nil unless it holds now
}

// endpoints lists the machines of accepted builders, sorted by builder and
// name.
func endpoints(builders []v1alpha1.NixBuilder, now time.Time) []endpoint {
	var all []endpoint
	for i := range builders {
		if !accepted(&builders[i]) {
			continue
		}
		for j := range builders[i].Spec.Endpoints {
			all = append(all, newEndpoint(&builders[i], &builders[i].Spec.Endpoints[j], now))
		}
	}
	slices.SortFunc(all, func(a, b endpoint) int {
		return cmp.Or(cmp.Compare(a.builder, b.builder), cmp.Compare(a.name, b.name))
	})
	return all
}

// accepted reports whether the machines of a builder are published at all.
func accepted(builder *v1alpha1.NixBuilder) bool {
	if !builder.DeletionTimestamp.IsZero() {
		return false
	}
	condition := builder.Status.Condition(v1alpha1.ConditionAccepted)
	return condition != nil && condition.Status == metav1.ConditionTrue
}

func newEndpoint(builder *v1alpha1.NixBuilder, given *v1alpha1.Endpoint, now time.Time) endpoint {
	spec := &builder.Spec
	e := endpoint{
		builder:     builder.Name,
		name:        given.Name,
		host:        given.Host,
		port:        int(cmp.Or(given.Port, 22)),
		user:        spec.User,
		program:     spec.RemoteProgram,
		mandatory:   words(spec.MandatoryFeatures),
		authorities: keys(spec.HostCertificateAuthorities),
		jump:        newJump(builder),
		speed:       int(max(spec.SpeedFactor, 1)),
		cordon:      spec.ActiveCordon(given, now),
	}
	// What is known of another address is not about this machine.
	if status := builder.Status.Endpoint(given.Name); status != nil && status.Address == given.Address() {
		e.state = *status
	}
	for _, reference := range spec.Credentials.SecretRefs {
		e.secrets = append(e.secrets, reference.Name)
	}
	e.secret = e.state.Credential
	if !slices.Contains(e.secrets, e.secret) && len(e.secrets) > 0 {
		e.secret = e.secrets[0]
	}
	e.takeFacts(spec, given)
	e.hostKeys = keys(given.HostKeys)
	// A pin counts only where neither key nor authority is given.
	if spec.HostKeyPolicy == v1alpha1.HostKeyTrustOnFirstUse && len(e.hostKeys) == 0 && len(e.authorities) == 0 {
		e.hostKeys = keys([]string{e.state.HostKey})
	}
	return e
}

// takeFacts fills what the spec declares or, where it does not and may be
// completed, what was discovered. Systems and features that were refuted are
// none, whoever names them.
func (e *endpoint) takeFacts(spec *v1alpha1.NixBuilderSpec, given *v1alpha1.Endpoint) {
	discovered := e.state
	if spec.Discovery == v1alpha1.DiscoveryDisabled {
		discovered = v1alpha1.EndpointStatus{}
	}
	e.systems = words(spec.Systems)
	if len(e.systems) == 0 {
		e.systems = words(discovered.Systems)
	}
	e.systems = without(e.systems, e.state.RefutedSystems)
	e.features = words(spec.SupportedFeatures)
	if len(e.features) == 0 {
		e.features = words(discovered.Features)
	}
	e.features = without(e.features, e.state.RefutedFeatures)
	if e.lacking = spec.Lacking(&e.state); len(e.lacking) > 0 {
		e.systems = nil // Dispatchers know no other way to say that it builds nothing.
	}
	// A builder whose own max-jobs is 0 takes builds of others all the same,
	// and clients would wait for a machine with 0 for ever.
	jobs := max(cmp.Or(given.MaxJobs, spec.MaxJobs, discovered.MaxJobs), 1)
	e.jobs = int(min(jobs, maxSlots))
}

// inUse reports whether builds are placed on it, apart from a cordon.
func (e *endpoint) inUse() bool { return e.state.InUse() }

// listable reports whether a machines file may have a line for it, whatever
// its health.
func (e *endpoint) listable() bool { return e.obstacle() == "" }

// obstacle says why a machines file may have no line for it, whatever its
// health, or is empty. These are the cases for which hope is no reason: someone
// has taken it out of use, it could not be reached in safety, or every build
// would fail there.
func (e *endpoint) obstacle() string {
	switch {
	case e.cordon != nil && e.cordon.Until != nil:
		return "cordoned until " + e.cordon.Until.UTC().Format(time.RFC3339) + ": " + e.cordon.Reason
	case e.cordon != nil:
		return "cordoned: " + e.cordon.Reason
	case e.state.FailedCondition == v1alpha1.ConditionHostKeyVerified:
		return "its host key is not verified (" + e.state.Reason + ")"
	case e.state.FailedCondition == v1alpha1.ConditionCredentialsValid:
		return "its credentials are not valid (" + e.state.Reason + ")"
	case !e.inUse() && e.state.LastHealthyTime == nil:
		return e.idle() + ", and was never healthy"
	case len(e.hostKeys) == 0 && len(e.authorities) == 0:
		return "no host key is known yet"
	case e.diskFull():
		return "its disk is full (" + e.state.Reason + ")"
	case len(e.lacking) > 0:
		return "it lacks mandatory features: " + strings.Join(e.lacking, ", ")
	case len(e.systems) == 0 && len(e.state.RefutedSystems) > 0:
		return "it builds for none of its systems (" + e.state.Reason + ")"
	case len(e.systems) == 0:
		return "no system is known yet"
	case e.secret == "":
		return "it has no Secret to log in with"
	}
	return ""
}

// diskFull reports whether the machine has no room for what it builds. Clients
// that could build by themselves, or wait, would only be kept from it by a line
// for such a machine. One that is overloaded is late and no worse.
func (e *endpoint) diskFull() bool {
	return e.state.FailedCondition == v1alpha1.ConditionMachineFit && e.state.Reason == string(probe.ReasonDiskPressure)
}

func without(list, others []string) []string {
	return slices.DeleteFunc(list, func(item string) bool { return slices.Contains(others, item) })
}

// writable is a system or feature that means the same in every file. What is
// declared is no other by the rules of the API; what a machine says of itself
// may be.
var writable = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+-]*$`)

// words gives the writable ones, sorted and without repetition.
func words(list []string) []string {
	return set(slices.DeleteFunc(slices.Clone(list), func(word string) bool { return !writable.MatchString(word) }))
}

// keys gives public key lines without their comments, sorted and without
// repetition. Lines that are none are left out; a spec with one of those is
// not accepted.
func keys(lines []string) []string {
	var plain []string
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		if key := fields[0] + " " + fields[1]; machines.CheckHostKey(key) == nil {
			plain = append(plain, key)
		}
	}
	return set(plain)
}

func set(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}
