// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package v1alpha1

const (
	// CredentialLabel must be "true" on every Secret that a NixBuilder names in
	// spec.credentials.secretRefs. Without it, whoever may write a NixBuilder
	// could make the operator present any SSH key of the namespace to a host of
	// his choice.
	CredentialLabel = "nixbuilder.io/credential"

	// CredentialCertificateKey is the key of a Secret's data that may hold an
	// OpenSSH user certificate for the private key beside it. The private key
	// itself is under the key that type kubernetes.io/ssh-auth prescribes.
	CredentialCertificateKey = "ssh-privatekey-cert.pub"

	// AcceptHostKeyAnnotation names, under policy TrustOnFirstUse, the host key
	// that may replace a pinned one: "<endpoint>=SHA256:<fingerprint>", several
	// of them separated by commas. It is the user's: the operator never writes
	// or removes it, and it has no effect once that key is the pinned one.
	AcceptHostKeyAnnotation = "nixbuilder.io/accept-host-key"

	// ProbeRequestAnnotation asks for a probe of every endpoint now, canaries
	// included, whose findings go to status.lastProbe. Each new value of it, such as
	// the time in RFC 3339, asks once; at most 64 characters of it count. It is the
	// user's: the operator never writes or removes it.
	ProbeRequestAnnotation = "nixbuilder.io/probe-requested-at"
)
