// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package v1alpha1

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
