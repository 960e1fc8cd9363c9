// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import "fmt"

// Version is a version of the worker protocol: major<<8 | minor.
type Version uint64

const (
	// Protocol is the version that both our ends speak, without features.
	Protocol Version = 0x123
	// OldestProtocol is the oldest version that we accept from a peer. It differs
	// from Protocol only in that the handshake has no trust word.
	OldestProtocol Version = 0x122

	// versionDaemonString is the first version with the daemon's Nix version in
	// the handshake, versionTrust the first with the trust word, versionCPUTimes
	// the first with CPU times in build results, versionFeatures the first that
	// exchanges feature names.
	versionDaemonString Version = 0x121
	versionTrust        Version = 0x123
	versionCPUTimes     Version = 0x125
	versionFeatures     Version = 0x126
	// versionErrors is the first with structured errors, versionReserve and
	// versionAffinity the first with those words in the handshake.
	versionErrors   Version = 0x11a
	versionAffinity Version = 0x10e
	versionReserve  Version = 0x10b

	magicClient       = 0x6e697863
	magicServer       = 0x6478696f
	magicAccessDenied = 0xab9a9ff0
)

// Major returns the part that must be 1.
func (v Version) Major() uint64 { return uint64(v) >> 8 }

// String returns the version as people write it, "1.35".
func (v Version) String() string { return fmt.Sprintf("%d.%d", uint64(v)>>8, uint64(v)&0xff) }

// Trust is what a daemon says about its client in the handshake.
type Trust uint8

// Trust values, in the protocol's own numbers. TrustUnknown is also what a daemon
// before 1.35 amounts to.
const (
	TrustUnknown Trust = iota
	Trusted
	NotTrusted
)

// String names the value.
func (t Trust) String() string {
	switch t {
	case Trusted:
		return "trusted"
	case NotTrusted:
		return "not trusted"
	}
	return "trust unknown"
}
