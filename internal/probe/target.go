// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package probe

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"time"
)

// Key names a builder, which has one or more endpoints.
type Key struct {
	Namespace string
	Name      string
}

// String is "namespace/name".
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Secret holds bytes that must never be shown. However it is formatted, encoded or
// logged, only its length appears.
type Secret []byte

const redacted = "[redacted, %d bytes]"

// Format prints a placeholder for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, redacted, len(s)) }

// LogValue is a placeholder.
func (s Secret) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf(redacted, len(s))) }

// MarshalText is a placeholder; encoders of JSON and YAML use it.
func (s Secret) MarshalText() ([]byte, error) { return fmt.Appendf(nil, redacted, len(s)), nil }

// Credential is one key to log in with.
type Credential struct {
	// Name is that of the Kubernetes Secret; it appears in messages.
	Name string
	// PrivateKey is unencrypted, in OpenSSH or PEM form.
	PrivateKey Secret
	// Certificate is the user certificate belonging to it, or empty.
	Certificate Secret
}

// Target is an endpoint to probe and what is expected of it.
type Target struct {
	// builder is what the endpoint belongs to; Set fills it in, for messages.
	builder Key
	// keep, patience and asked are filled in for each probe: whether to leave the
	// connection open afterwards, the time for each step of connecting where it is not
	// Timeout, and since when somebody waits for it, if anybody does.
	keep     bool
	patience time.Duration
	asked    time.Time
	// Endpoint names it within its builder.
	Endpoint string
	Host     string
	Port     int
	User     string
	// RemoteProgram is the path of nix-daemon on the builder; empty leaves finding
	// it to PATH. nix-store and nix are expected in the same directory.
	RemoteProgram string
	// HostKeys and CertificateAuthorities are public key lines.
	HostKeys               []string
	CertificateAuthorities []string
	// Jump, unless nil, is the SSH server through which the endpoint is reached.
	Jump *Jump
	// TrustOnFirstUse accepts whatever host key is seen first, where neither keys
	// nor authorities are given; PinnedHostKey is the one seen before. Until it is
	// given, the prober remembers the key itself.
	TrustOnFirstUse bool
	PinnedHostKey   string
	// Credentials are tried in order.
	Credentials []Credential
	// Systems and Features are what is declared and hence to be verified.
	Systems  []string
	Features []string
	// Discovery allows asking the builder what it offers.
	Discovery bool
	// Canary allows building something tiny there for each system, now and then.
	Canary bool
	// Thresholds say how full, busy or wrong the machine may be.
	Thresholds Thresholds
	// KeepConnection leaves the connection of a probe that passed open until the next
	// probe's replaces it, so that its loss shows at once; see kept.go.
	KeepConnection bool
	// Interval is the time from one probe's start to the next one's; Timeout
	// bounds each step of a probe. FailureThreshold is how many failures in a row
	// make an endpoint unhealthy. Zero values become the defaults below.
	Interval         time.Duration
	Timeout          time.Duration
	FailureThreshold int
	// Restored, where not nil, is the state to start from when the endpoint is set
	// for the first time. It is not looked at later.
	Restored *Snapshot
}

// Thresholds say how full, busy or wrong a machine may be. What is zero is not looked
// at.
type Thresholds struct {
	// MinFreeBytes is how much room the file system of the store has to have.
	MinFreeBytes int64
	// MaxLoadPercent is the most that the load average of the last minute may be,
	// in percent of the processors.
	MaxLoadPercent int
	// MaxCPUPressure, MaxMemoryPressure and MaxIOPressure are the most of the last
	// minute, in percent, in which some process may have waited for it (Linux).
	MaxCPUPressure    int
	MaxMemoryPressure int
	MaxIOPressure     int
	// MaxClockSkew is how far the clock may be from ours. It takes nothing out of
	// use.
	MaxClockSkew time.Duration
}

// Defaults of a [Target].
const (
	DefaultPort             = 22
	DefaultInterval         = 30 * time.Second
	DefaultTimeout          = 10 * time.Second
	DefaultFailureThreshold = 3
)

func (t Target) withDefaults() Target {
	if t.Port == 0 {
		t.Port = DefaultPort
	}
	if t.Interval <= 0 {
		t.Interval = DefaultInterval
	}
	if t.Timeout <= 0 {
		t.Timeout = DefaultTimeout
	}
	if t.FailureThreshold <= 0 {
		t.FailureThreshold = DefaultFailureThreshold
	}
	return t
}

// Address is host:port.
func (t *Target) Address() string { return net.JoinHostPort(t.Host, strconv.Itoa(t.Port)) }

// sameMachine tells whether two targets lead to the same Nix at the same place, so
// that what is known of one holds for the other.
func sameMachine(a, b *Target) bool {
	return a.Host == b.Host && a.Port == b.Port && a.User == b.User &&
		a.RemoteProgram == b.RemoteProgram && sameHostKeys(a, b) && sameJump(a.Jump, b.Jump)
}

func sameHostKeys(a, b *Target) bool {
	return slices.Equal(a.HostKeys, b.HostKeys) &&
		slices.Equal(a.CertificateAuthorities, b.CertificateAuthorities) &&
		a.TrustOnFirstUse == b.TrustOnFirstUse
}

func sameCredentials(a, b *Target) bool {
	return equalCredentials(a.Credentials, b.Credentials) &&
		equalCredentials(a.Jump.credentials(), b.Jump.credentials())
}

func equalCredentials(a, b []Credential) bool {
	return slices.EqualFunc(a, b, func(x, y Credential) bool {
		return x.Name == y.Name && bytes.Equal(x.PrivateKey, y.PrivateKey) &&
			bytes.Equal(x.Certificate, y.Certificate)
	})
}

// sameExpectations tells whether a result for one target answers for the other.
func sameExpectations(a, b *Target) bool {
	return slices.Equal(a.Systems, b.Systems) && slices.Equal(a.Features, b.Features) &&
		a.Discovery == b.Discovery && a.Canary == b.Canary && a.Thresholds == b.Thresholds
}
