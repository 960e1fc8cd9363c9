// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// HostKeyPolicy says how an endpoint's SSH host key is verified.
//
// +kubebuilder:validation:Enum=Strict;TrustOnFirstUse
type HostKeyPolicy string

const (
	// HostKeyStrict accepts only a key from the endpoint's hostKeys or one that
	// a host certificate authority has signed.
	HostKeyStrict HostKeyPolicy = "Strict"
	// HostKeyTrustOnFirstUse pins the key seen first, and only that one from
	// then on.
	HostKeyTrustOnFirstUse HostKeyPolicy = "TrustOnFirstUse"
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

// Canary says whether a probe includes a tiny build on the builder.
//
// +kubebuilder:validation:Enum=Disabled;Enabled
type Canary string

const (
	// CanaryDisabled probes without building.
	CanaryDisabled Canary = "Disabled"
	// CanaryEnabled builds one tiny derivation for each system.
	CanaryEnabled Canary = "Enabled"
)

// KeptConnection says whether the operator keeps a connection to each machine.
//
// +kubebuilder:validation:Enum=Disabled;Enabled
type KeptConnection string

const (
	// KeptConnectionDisabled connects for each probe alone.
	KeptConnectionDisabled KeptConnection = "Disabled"
	// KeptConnectionEnabled keeps one idle connection between probes.
	KeptConnectionEnabled KeptConnection = "Enabled"
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

// Credentials name the SSH keys to log in with.
type Credentials struct {
	// secretRefs name 1 to 4 Secrets of this namespace, tried in order, so that
	// an old and a new key can overlap while keys are rotated. Each has type
	// kubernetes.io/ssh-auth and label nixbuilder.io/credential: "true". A user
	// certificate may lie beside the key under ssh-privatekey-cert.pub.
	//
	// +required
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	SecretRefs []SecretReference `json:"secretRefs"`
}

// SecretReference names a Secret in the namespace of the object it stands in.
type SecretReference struct {
	// name is the Secret's name.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="must be the name of a Secret: lower-case letters, digits, '-' and '.', starting and ending with a letter or digit"
	Name string `json:"name"`
}

// Probe says how often and how patiently machines are checked.
//
// +kubebuilder:validation:XValidation:rule="self.timeoutSeconds <= self.intervalSeconds",message="timeoutSeconds must not be more than intervalSeconds (10 and 30 when absent)"
type Probe struct {
	// intervalSeconds is the time between two probes of a machine, 5 to 3600
	// seconds, 30 when absent.
	//
	// +optional
	// +kubebuilder:default=30
	// +kubebuilder:validation:Minimum=5
	// +kubebuilder:validation:Maximum=3600
	IntervalSeconds int32 `json:"intervalSeconds,omitempty"`

	// timeoutSeconds bounds every step of a probe, 1 to 300 seconds, 10 when
	// absent, and not more than intervalSeconds.
	//
	// +optional
	// +kubebuilder:default=10
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=300
	TimeoutSeconds int32 `json:"timeoutSeconds,omitempty"`

	// failureThreshold is how many probes in a row have to fail before a
	// machine that was healthy is taken out of use, 1 to 20, 3 when absent.
	// A changed host key or a refused login takes it out at once.
	//
	// +optional
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=20
	FailureThreshold int32 `json:"failureThreshold,omitempty"`

	// canary says whether one tiny derivation is built for each system, at the
	// first probe, after changes and failures, and else once an hour: Disabled
	// (the default) or Enabled. A system for which that fails is taken out of use.
	//
	// +optional
	// +kubebuilder:default=Disabled
	Canary Canary `json:"canary,omitempty"`

	// keptConnection says whether the operator keeps one idle SSH connection to
	// each machine between probes: Enabled (the default) or Disabled. With it, a
	// machine that goes away is out of use within seconds instead of after
	// failureThreshold probes.
	//
	// +optional
	// +kubebuilder:default=Enabled
	KeptConnection KeptConnection `json:"keptConnection,omitempty"`
}

// Thresholds say how full, busy or wrong a machine may be and still be used. They
// are looked at with each probe, where the machine allows running df and reading
// /proc; what cannot be read takes nothing out of use. A machine that is out of use
// is used again once it is better than the threshold by a fifth.
type Thresholds struct {
	// minFreeSpace is how much room the file system of the machine's Nix store
	// must have, 1Gi when absent. 0 turns the check off.
	//
	// +optional
	// +kubebuilder:default="1Gi"
	MinFreeSpace *resource.Quantity `json:"minFreeSpace,omitempty"`

	// maxLoadPercent is the most that the load average of the last minute may be,
	// in percent of the machine's processors: 200 is two processes that want to
	// run on each. Not looked at when absent.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	MaxLoadPercent int32 `json:"maxLoadPercent,omitempty"`

	// maxCPUPressurePercent is the most of the last minute, in percent, in which
	// some process may have waited for a processor, as Linux tells in
	// /proc/pressure/cpu. Not looked at when absent.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxCPUPressurePercent int32 `json:"maxCPUPressurePercent,omitempty"`

	// maxMemoryPressurePercent is the same for memory.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxMemoryPressurePercent int32 `json:"maxMemoryPressurePercent,omitempty"`

	// maxIOPressurePercent is the same for disks.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxIOPressurePercent int32 `json:"maxIOPressurePercent,omitempty"`

	// maxClockSkewSeconds is how far the machine's clock may be from the
	// operator's, 300 when absent. A clock further off is reported in condition
	// MachineFit and leaves the machine in use: it may be the operator's that is
	// wrong.
	//
	// +optional
	// +kubebuilder:default=300
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=315360000
	MaxClockSkewSeconds int32 `json:"maxClockSkewSeconds,omitempty"`
}

// ProxyJump is an SSH server through which machines are reached. It needs neither
// Nix nor a shell for the user, only permission to forward TCP connections.
//
// +kubebuilder:validation:XValidation:rule="(has(self.hostKeys) && size(self.hostKeys) > 0) || (has(self.hostCertificateAuthorities) && size(self.hostCertificateAuthorities) > 0)",message="needs hostKeys or hostCertificateAuthorities: a key is the content of /etc/ssh/ssh_host_ed25519_key.pub on the jump host"
type ProxyJump struct {
	// host is the jump host's DNS name in lower case or its IP address, without
	// user, port or brackets.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="(self.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$') && !self.matches('(^|[.])[0-9]+$')) || self.matches('^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])[.]){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$') || self.matches('^([0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}$')",message="must be a DNS name in lower case, an IPv4 address or an IPv6 address in lower case without brackets, such as mac-1.example.com, 192.0.2.7 or 2001:db8::7; the port has a field of its own"
	Host string `json:"host"`

	// port is the TCP port of the jump host's SSH server, 22 when absent.
	//
	// +optional
	// +kubebuilder:default=22
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`

	// user is the account on the jump host, that of the machines when absent.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9_][A-Za-z0-9_.-]*$')",message="must be an account name of letters, digits, '_', '.' and '-' that does not start with '.' or '-', such as jump"
	User string `json:"user,omitempty"`

	// hostKeys are the jump host's public host keys, at most 8, one per item as
	// in /etc/ssh/ssh_host_ed25519_key.pub.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp[0-9]+) AAAA[A-Za-z0-9+/]+={0,2}( .*)?$')",message="must be one public key in one line, '<type> <base64> [comment]' with type ssh-ed25519, ecdsa-sha2-nistp256, -nistp384, -nistp521 or ssh-rsa, without a host name before it: the content of /etc/ssh/ssh_host_ed25519_key.pub on the machine"
	HostKeys []string `json:"hostKeys,omitempty"`

	// hostCertificateAuthorities are public keys, at most 8, whose host
	// certificates for the jump host are accepted in place of a known key.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp[0-9]+) AAAA[A-Za-z0-9+/]+={0,2}( .*)?$')",message="must be one public key in one line, '<type> <base64> [comment]' with type ssh-ed25519, ecdsa-sha2-nistp256, -nistp384, -nistp521 or ssh-rsa: the content of the authority's .pub file"
	HostCertificateAuthorities []string `json:"hostCertificateAuthorities,omitempty"`

	// credentials are the SSH keys to log in to the jump host with, those of the
	// machines when absent.
	//
	// +optional
	Credentials *Credentials `json:"credentials,omitempty"`
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
