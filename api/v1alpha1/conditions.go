// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package v1alpha1

// Condition types of a NixBuilder, in the order of the steps by which a machine
// is checked. All are positive and always there, but Cordoned, which is there
// only while true.
const (
	// ConditionAccepted says that the spec can be worked with. It depends on
	// specs alone, never on the network.
	ConditionAccepted = "Accepted"
	// ConditionCredentialsValid says that every Secret in secretRefs can be
	// used.
	ConditionCredentialsValid = "CredentialsValid"
	// ConditionReachable says that the host resolves and an SSH server answers.
	ConditionReachable = "Reachable"
	// ConditionHostKeyVerified says that the machine proved to be the right one.
	ConditionHostKeyVerified = "HostKeyVerified"
	// ConditionAuthenticated says that the machine accepted a key.
	ConditionAuthenticated = "Authenticated"
	// ConditionNixAvailable says that nix-daemon runs there and speaks a
	// protocol that we speak.
	ConditionNixAvailable = "NixAvailable"
	// ConditionTrusted says that nix-daemon there trusts the user.
	ConditionTrusted = "Trusted"
	// ConditionMachineFit says that disk, load and clock of the machine are within
	// spec.thresholds.
	ConditionMachineFit = "MachineFit"
	// ConditionSystemsVerified says that the machine builds for the systems and
	// with the features that the spec declares.
	ConditionSystemsVerified = "SystemsVerified"
	// ConditionReady is the summary: every declared system has a machine in use.
	ConditionReady = "Ready"
	// ConditionCordoned says that at least one machine is cordoned.
	ConditionCordoned = "Cordoned"
)

// Reasons that several conditions share. Those of a machine's steps (Reachable
// to SystemsVerified) come from the prober besides; docs/spec lists them all.
const (
	// ReasonNotProbed means that the first probe has not ended yet.
	ReasonNotProbed = "NotProbed"
	// ReasonNotReached means that an earlier step failed, so that this one could
	// not be tried.
	ReasonNotReached = "NotReached"
	// ReasonCordoned means that every endpoint is cordoned, or, as the reason of
	// condition Cordoned, that at least one is.
	ReasonCordoned = "Cordoned"
	// ReasonNotAccepted means that nothing is tried while Accepted is False.
	ReasonNotAccepted = "NotAccepted"
	// ReasonNoCredential means that nothing is tried without a usable key.
	ReasonNoCredential = "NoCredential"
)

// Reasons of condition Accepted.
const (
	// ReasonAccepted (True) means that the spec can be worked with.
	ReasonAccepted = "Accepted"
	// ReasonInvalidHost means that a host is no address after all.
	ReasonInvalidHost = "InvalidHost"
	// ReasonInvalidKey means that a host key or authority is no public key.
	ReasonInvalidKey = "InvalidKey"
	// ReasonDuplicateEndpoint means that an older NixBuilder of the namespace
	// has the same machine.
	ReasonDuplicateEndpoint = "DuplicateEndpoint"
)

// Reasons of condition CredentialsValid, besides those about the key itself.
const (
	// ReasonCredentialsUsable (True) means that every Secret holds a usable key.
	ReasonCredentialsUsable = "CredentialsUsable"
	// ReasonSecretNotFound means that there is no Secret of that name.
	ReasonSecretNotFound = "SecretNotFound"
	// ReasonSecretForbidden means that the operator may not read it.
	ReasonSecretForbidden = "SecretForbidden"
	// ReasonSecretWrongType means that its type is not kubernetes.io/ssh-auth.
	ReasonSecretWrongType = "SecretWrongType"
	// ReasonSecretNotLabelled means that it lacks the label by which its owner
	// allows it to be used.
	ReasonSecretNotLabelled = "SecretNotLabelled"
)

// Reasons of condition Ready. Where it is False it has the reason of the
// condition that does not hold, so that the column REASON names the cause.
const (
	// ReasonAllHealthy (True) means that every endpoint is healthy.
	ReasonAllHealthy = "AllHealthy"
	// ReasonDegraded (True) means that some endpoint is not, but every system
	// has one in use.
	ReasonDegraded = "Degraded"
	// ReasonSystemsUnknown (False) means that the machines can be used but did
	// not tell for which systems, and the spec does not either.
	ReasonSystemsUnknown = "SystemsUnknown"
)
