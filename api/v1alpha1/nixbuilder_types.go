// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Discovery says whether fields absent from the spec are taken from the builder.
//
// +kubebuilder:validation:Enum=Enabled;Disabled
type Discovery string

const (
	// DiscoveryEnabled takes absent fields from the builder's own configuration.
	DiscoveryEnabled Discovery = "Enabled"
	// DiscoveryDisabled makes absent fields mean none.
	DiscoveryDisabled Discovery = "Disabled"
)

// NixBuilderSpec describes one or more machines of the same make that build
// Nix derivations for others over SSH.
//
// +kubebuilder:validation:XValidation:rule="self.hostKeyPolicy != 'Strict' || (has(self.hostCertificateAuthorities) && size(self.hostCertificateAuthorities) > 0) || self.endpoints.all(e, has(e.hostKeys) && size(e.hostKeys) > 0)",message="with hostKeyPolicy Strict every endpoint needs hostKeys, or the spec hostCertificateAuthorities; print the key with ssh-keyscan and compare it on the machine, or set hostKeyPolicy to TrustOnFirstUse"
// +kubebuilder:validation:XValidation:rule="self.discovery != 'Disabled' || (has(self.systems) && size(self.systems) > 0)",message="with discovery Disabled systems must list at least one system, such as x86_64-linux"
type NixBuilderSpec struct {
	// endpoints are the machines, 1 to 64, each with a name of its own. All are
	// reached with the same user and credentials and build for the same systems.
	// No two may have the same host and port.
	//
	// +required
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a.host == b.host && a.port == b.port))",message="host and port must differ between endpoints: one machine is one endpoint"
	Endpoints []Endpoint `json:"endpoints"`

	// user is the account on the builder to log in as. It has to be root or be
	// listed in trusted-users of the builder's nix.conf.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9_][A-Za-z0-9_.-]*$')",message="must be an account name of letters, digits, '_', '.' and '-' that does not start with '.' or '-', such as nix-ssh"
	User string `json:"user"`

	// systems are the systems that the builder builds for, such as x86_64-linux
	// or aarch64-darwin, 1 to 32. When absent and discovery is Enabled they are
	// taken from the builder.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=3
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^[A-Za-z0-9_]+(-[A-Za-z0-9_]+)+$')",message="must be a Nix system: letters, digits and '_' in parts joined by '-', such as x86_64-linux or aarch64-darwin"
	Systems []string `json:"systems,omitempty"`

	// maxJobs is how many builds each machine runs at once, 1 to 1024. When
	// absent and discovery is Enabled it is the builder's own max-jobs, else 1.
	// An endpoint's maxJobs goes before it.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	MaxJobs int32 `json:"maxJobs,omitempty"`

	// speedFactor compares builders: of two that could do a build, the one with
	// the higher factor is preferred. A whole number from 1 to 10000, 1 when
	// absent: fractions are not understood by every version of Nix.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	SpeedFactor int32 `json:"speedFactor,omitempty"`

	// supportedFeatures are the system features that the builder offers, such
	// as kvm or big-parallel, at most 32. When absent and discovery is Enabled
	// they are taken from the builder.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^[A-Za-z0-9_][A-Za-z0-9_.+-]*$')",message="must be a system feature of letters, digits, '_', '.', '+' and '-', without spaces or commas, such as big-parallel; write several as several list items"
	SupportedFeatures []string `json:"supportedFeatures,omitempty"`

	// mandatoryFeatures are system features that a build has to require to be
	// sent here at all, at most 32. The builder offers them too.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^[A-Za-z0-9_][A-Za-z0-9_.+-]*$')",message="must be a system feature of letters, digits, '_', '.', '+' and '-', without spaces or commas, such as big-parallel; write several as several list items"
	MandatoryFeatures []string `json:"mandatoryFeatures,omitempty"`

	// discovery says whether systems, maxJobs and supportedFeatures are taken
	// from the builder where they are absent (Enabled) or mean none (Disabled;
	// systems are then required, and maxJobs is 1).
	//
	// +optional
	// +kubebuilder:default=Enabled
	Discovery Discovery `json:"discovery,omitempty"`

	// credentials are the SSH keys to log in with.
	//
	// +required
	Credentials Credentials `json:"credentials,omitzero"`

	// hostKeyPolicy says how the builder proves that it is the right machine:
	// Strict (by a key in hostKeys or a certificate of one of
	// hostCertificateAuthorities) or TrustOnFirstUse (the key seen first is
	// pinned in status and nothing else accepted from then on).
	//
	// +optional
	// +kubebuilder:default=Strict
	HostKeyPolicy HostKeyPolicy `json:"hostKeyPolicy,omitempty"`

	// hostCertificateAuthorities are public keys, at most 8, one per item in
	// the format of authorized_keys. A host certificate signed by one of them
	// for the endpoint's host is accepted in place of a known key.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp[0-9]+) AAAA[A-Za-z0-9+/]+={0,2}( .*)?$')",message="must be one public key in one line, '<type> <base64> [comment]' with type ssh-ed25519, ecdsa-sha2-nistp256, -nistp384, -nistp521 or ssh-rsa: the content of the authority's .pub file"
	HostCertificateAuthorities []string `json:"hostCertificateAuthorities,omitempty"`

	// remoteProgram is the absolute path of nix-daemon on the builder, for
	// accounts whose PATH lacks it in non-interactive shells, as on macOS:
	// /nix/var/nix/profiles/default/bin/nix-daemon.
	//
	// +optional
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="self.matches('^/[A-Za-z0-9._/+-]+$')",message="must be an absolute path of letters, digits, '.', '_', '/', '+' and '-', such as /nix/var/nix/profiles/default/bin/nix-daemon"
	RemoteProgram string `json:"remoteProgram,omitempty"`

	// proxyJump is an SSH server through which the machines are reached, as with
	// OpenSSH's ProxyJump. The hosts of endpoints are then looked up and connected
	// to from there.
	//
	// +optional
	ProxyJump *ProxyJump `json:"proxyJump,omitempty"`

	// thresholds say how full, busy or wrong a machine may be and still be used.
	//
	// +optional
	// +kubebuilder:default={}
	Thresholds Thresholds `json:"thresholds,omitzero"`

	// probe says how the machines are checked.
	//
	// +optional
	// +kubebuilder:default={intervalSeconds: 30, timeoutSeconds: 10, failureThreshold: 3, canary: Disabled, keptConnection: Enabled}
	Probe Probe `json:"probe,omitzero"`

	// cordon takes all machines out of use: no new builds are placed on them,
	// running ones finish. They are probed all the same.
	//
	// +optional
	Cordon *Cordon `json:"cordon,omitempty"`
}

// Endpoint is one machine.
type Endpoint struct {
	// name identifies the machine within this object: a DNS label of at most
	// 63 lower-case letters, digits and '-'.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="must be a DNS label: lower-case letters, digits and '-', not at the ends, such as mac-1"
	Name string `json:"name"`

	// host is the machine's DNS name in lower case or its IP address, without
	// user, port or brackets.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="(self.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$') && !self.matches('(^|[.])[0-9]+$')) || self.matches('^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])[.]){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$') || self.matches('^([0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}$')",message="must be a DNS name in lower case, an IPv4 address or an IPv6 address in lower case without brackets, such as mac-1.example.com, 192.0.2.7 or 2001:db8::7; the port has a field of its own"
	Host string `json:"host"`

	// port is the TCP port of the SSH server, 22 when absent.
	//
	// +optional
	// +kubebuilder:default=22
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`

	// hostKeys are the machine's public host keys, at most 8, one per item as
	// in /etc/ssh/ssh_host_ed25519_key.pub.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp[0-9]+) AAAA[A-Za-z0-9+/]+={0,2}( .*)?$')",message="must be one public key in one line, '<type> <base64> [comment]' with type ssh-ed25519, ecdsa-sha2-nistp256, -nistp384, -nistp521 or ssh-rsa, without a host name before it: the content of /etc/ssh/ssh_host_ed25519_key.pub on the machine"
	HostKeys []string `json:"hostKeys,omitempty"`

	// maxJobs is how many builds this machine runs at once, 1 to 1024. When
	// absent spec.maxJobs counts.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	MaxJobs int32 `json:"maxJobs,omitempty"`

	// cordon takes this machine out of use: no new builds are placed on it,
	// running ones finish. It is probed all the same.
	//
	// +optional
	Cordon *Cordon `json:"cordon,omitempty"`
}

// Cordon takes machines out of use while it is there and not past its time.
type Cordon struct {
	// reason says why, in at most 256 characters, to those whose builds wait.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="!self.matches('[[:cntrl:]]')",message="must be one line of text"
	Reason string `json:"reason"`

	// until is when the cordon ends by itself. Without it, it ends when it is
	// taken out of the spec.
	//
	// +optional
	Until *metav1.Time `json:"until,omitempty"`
}

// NixBuilder is one or more machines of the same make that build Nix
// derivations for others over SSH.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=nxb,categories=nix
// +kubebuilder:printcolumn:name="Healthy",type=string,JSONPath=".status.healthy",description="Healthy endpoints of all"
// +kubebuilder:printcolumn:name="Systems",type=string,JSONPath=".status.systems",description="Systems that it builds for"
// +kubebuilder:printcolumn:name="Jobs",type=integer,JSONPath=".status.jobs",description="Builds that all its machines together run at once"
// +kubebuilder:printcolumn:name="Nix",type=string,JSONPath=".status.nix",description="Versions of Nix on its machines"
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=".status.conditions[?(@.type=='Ready')].status",description="Whether every system has a healthy endpoint"
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=".status.conditions[?(@.type=='Ready')].reason",description="Why"
// +kubebuilder:printcolumn:name="Cordoned",type=string,JSONPath=".status.cordoned",description="Cordoned endpoints of all, where there are any"
// +kubebuilder:printcolumn:name="User",type=string,priority=1,JSONPath=".spec.user",description="Account that is logged in to"
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=".status.conditions[?(@.type=='Ready')].message",description="Why, in a sentence"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=".metadata.creationTimestamp"
type NixBuilder struct {
	metav1.TypeMeta `json:",inline"`

	// metadata is the standard object metadata.
	//
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// spec is what the user wants.
	//
	// +required
	Spec NixBuilderSpec `json:"spec,omitzero"`

	// status is what the operator has found.
	//
	// +optional
	Status NixBuilderStatus `json:"status,omitzero"`
}

// NixBuilderList is a list of NixBuilders.
//
// +kubebuilder:object:root=true
type NixBuilderList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`

	// items are the NixBuilders.
	Items []NixBuilder `json:"items"`
}
