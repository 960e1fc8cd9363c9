// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package inventory is the list of builders that the operator hands to
// dispatchers: a versioned document, published as the key builders.json of
// the ConfigMap nix-machines. Where there is no cluster, a dispatcher makes
// the same document of a plain machines file.
//
// The document holds every builder, healthy or not, so that a dispatcher can
// offer lines for all classes of builds and say why one waits.
package inventory

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// SchemaVersion is the version of the document that this package writes and
// reads. It changes only when an older reader would misunderstand a newer
// document: readers ignore fields that they do not know.
const SchemaVersion = 1

// Limits of a document. They bound what a reader allocates; the writer stays
// below them by the limits of the API.
const (
	// MaxSize is the most bytes a document, or a machines file, may have. A
	// ConfigMap cannot have more.
	MaxSize = 1 << 20
	// MaxSlots is the most builds an endpoint may take at once.
	MaxSlots = 1 << 16
	// MaxSpeedFactor is the greatest speed factor.
	MaxSpeedFactor = 1 << 24
	// maxNameLength is the length of the longest DNS name.
	maxNameLength = 253
)

// State says whether builds are placed on an endpoint.
type State string

// The states, as in status.endpoints[].state of a NixBuilder. Any other text
// in a document reads as StateUnknown.
const (
	// StateUnknown: nobody has probed it yet, or nobody does.
	StateUnknown State = "Unknown"
	// StateHealthy: its last probe went through.
	StateHealthy State = "Healthy"
	// StateSuspect: its last probe failed, but it is not given up yet.
	StateSuspect State = "Suspect"
	// StateUnhealthy: it is out of use until a probe goes through.
	StateUnhealthy State = "Unhealthy"
)

// Document is the list of builders.
type Document struct {
	// SchemaVersion is the version of the format.
	SchemaVersion int `json:"schemaVersion"`
	// Builders are the machines, in the order of their IDs.
	//
	// As text, those behind a jump host are a list of their own, jumpBuilders: a
	// reader that knows nothing of jump hosts would connect to their addresses
	// itself, where they are nobody's or somebody else's. So it does without them,
	// and schema version 1 stays readable for it.
	Builders []Endpoint `json:"builders"`
}

// Endpoint is one machine.
type Endpoint struct {
	// Builder is the name of the NixBuilder, Name that of the machine in it.
	// Together they are unique; see ID.
	Builder string `json:"builder"`
	Name    string `json:"name"`
	// Host is a DNS name or an IP address without brackets; Port its SSH port.
	Host string `json:"host"`
	Port int    `json:"port"`
	// User is the account to log in as.
	User string `json:"user"`
	// Jump, unless nil, is the SSH server through which the machine is reached. Host
	// is looked up there.
	Jump *Jump `json:"jump,omitempty"`
	// HostKeys are the public keys of which the machine must show one, each
	// as "type base64" and maybe a comment.
	HostKeys []string `json:"hostKeys,omitempty"`
	// CertificateAuthorities are the public keys of authorities whose host
	// certificates are accepted instead.
	CertificateAuthorities []string `json:"certificateAuthorities,omitempty"`
	// Credentials are the names of Secrets that hold a private key, to be
	// tried in this order. A reader finds each as
	// <keys directory>/<name>/ssh-privatekey.
	Credentials []string `json:"credentials,omitempty"`
	// IdentityFile is the path of a private key. It is set only where the
	// endpoint comes from a machines file.
	IdentityFile string `json:"identityFile,omitempty"`
	// RemoteProgram is the path of nix-daemon on the machine, "" for PATH's.
	RemoteProgram string `json:"remoteProgram,omitempty"`
	// Systems, SupportedFeatures and MandatoryFeatures say what it builds, as
	// in the machines file. Systems may be unknown yet, and empty.
	Systems           []string `json:"systems,omitempty"`
	SupportedFeatures []string `json:"supportedFeatures,omitempty"`
	MandatoryFeatures []string `json:"mandatoryFeatures,omitempty"`
	// Slots is how many builds it takes at once, at least 1.
	Slots int `json:"slots"`
	// SpeedFactor weighs it against others, at least 1.
	SpeedFactor int `json:"speedFactor"`
	// State says whether it is in use, Reason in one word why, Message in a
	// sentence, and Since when that began. The operator leaves Message out,
	// because its words change more often than the state does.
	State   State     `json:"state"`
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	// Cordon is set where a person has taken the machine out of use.
	Cordon *Cordon `json:"cordon,omitempty"`
}

// Jump is an SSH server that passes connections on; see the fields of the same names
// of [Endpoint].
type Jump struct {
	Host                   string   `json:"host"`
	Port                   int      `json:"port"`
	User                   string   `json:"user"`
	HostKeys               []string `json:"hostKeys,omitempty"`
	CertificateAuthorities []string `json:"certificateAuthorities,omitempty"`
	Credentials            []string `json:"credentials,omitempty"`
}

// Cordon takes a machine out of use: no new builds, running ones finish.
type Cordon struct {
	// Reason is the words of who did it.
	Reason string `json:"reason"`
	// Until is when it ends by itself; nil: not by itself.
	Until *time.Time `json:"until,omitempty"`
}

// ActiveAt reports whether the cordon holds at the given time.
func (c *Cordon) ActiveAt(now time.Time) bool {
	return c != nil && (c.Until == nil || now.Before(*c.Until))
}

// ID is the endpoint's name within a document, "mac/mac-2".
func (e Endpoint) ID() string { return e.Builder + "/" + e.Name }

// validate checks what a reader relies on.
func (e Endpoint) validate() error {
	for _, text := range []struct{ what, value string }{
		{"builder", e.Builder}, {"name", e.Name}, {"host", e.Host}, {"user", e.User},
	} {
		if err := checkName(text.what, text.value); err != nil {
			return err
		}
	}
	for _, secret := range e.Credentials {
		if err := checkName("credential", secret); err != nil {
			return err
		}
	}
	if err := e.Jump.validate(); err != nil {
		return err
	}
	for _, number := range []struct {
		what        string
		value, most int
	}{
		{"port", e.Port, 1<<16 - 1}, {"slots", e.Slots, MaxSlots}, {"speedFactor", e.SpeedFactor, MaxSpeedFactor},
	} {
		if number.value < 1 || number.value > number.most {
			return fmt.Errorf("%s is %d, not between 1 and %d", number.what, number.value, number.most)
		}
	}
	return nil
}

// validate checks what a reader relies on; no jump host at all is fine. One without
// host keys would have to be trusted blindly, so there is none.
func (j *Jump) validate() error {
	if j == nil {
		return nil
	}
	for _, text := range []struct{ what, value string }{{"jump host", j.Host}, {"user of the jump host", j.User}} {
		if err := checkName(text.what, text.value); err != nil {
			return err
		}
	}
	for _, secret := range j.Credentials {
		if err := checkName("credential of the jump host", secret); err != nil {
			return err
		}
	}
	switch {
	case j.Port < 1 || j.Port > 1<<16-1:
		return fmt.Errorf("port of the jump host is %d, not between 1 and %d", j.Port, 1<<16-1)
	case len(j.HostKeys)+len(j.CertificateAuthorities) == 0:
		return errors.New("the jump host has no host key")
	case len(j.Credentials) == 0:
		return errors.New("the jump host has no credential")
	}
	return nil
}

// checkName keeps out what could act as an option of a command, leave a
// directory, or hide in a log line.
func checkName(what, value string) error {
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' }
	switch {
	case value == "":
		return fmt.Errorf("%s is missing", what)
	case len(value) > maxNameLength:
		return fmt.Errorf("%s is longer than %d bytes", what, maxNameLength)
	case value[0] == '-' || value[0] == '.' || strings.ContainsFunc(value, bad):
		return fmt.Errorf("%s %q is not a name", what, value)
	}
	return nil
}
