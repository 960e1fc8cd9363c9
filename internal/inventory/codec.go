// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package inventory

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrTooLarge is what Encode fails with when a document would be larger than
// MaxSize, which every reader refuses.
var ErrTooLarge = fmt.Errorf("larger than %d bytes", MaxSize)

// VersionError is a document of a version that this program cannot read.
type VersionError struct {
	// Version is the document's.
	Version int
}

// Error names both versions and what to do.
func (e *VersionError) Error() string {
	return fmt.Sprintf("the list of builders has schema version %d and this program reads version %d: "+
		"run the same release of operator and dispatcher", e.Version, SchemaVersion)
}

// Encode writes a document, one endpoint per line. Equal documents give equal
// bytes, whatever the order of their endpoints, systems, features and keys;
// the order of credentials has a meaning and stays. The document itself is
// not changed.
func Encode(document Document) ([]byte, error) {
	builders := make([]Endpoint, len(document.Builders))
	for i, endpoint := range document.Builders {
		builders[i] = normalised(endpoint)
	}
	slices.SortFunc(builders, compareIDs)
	if err := validate(builders); err != nil {
		return nil, fmt.Errorf("encode the list of builders: %w", err)
	}
	behind := slices.DeleteFunc(slices.Clone(builders), func(e Endpoint) bool { return e.Jump == nil })
	builders = slices.DeleteFunc(builders, func(e Endpoint) bool { return e.Jump != nil })
	var text bytes.Buffer
	fmt.Fprintf(&text, `{"schemaVersion":%d,"builders":[`, SchemaVersion)
	if err := encodeList(&text, builders); err != nil {
		return nil, err
	}
	if len(behind) > 0 {
		text.WriteString(`,"jumpBuilders":[`)
		if err := encodeList(&text, behind); err != nil {
			return nil, err
		}
	}
	text.WriteString("}\n")
	if text.Len() > MaxSize {
		return nil, fmt.Errorf("encode the list of builders: %w", ErrTooLarge)
	}
	return text.Bytes(), nil
}

// encodeList writes the rest of a list that has been opened.
func encodeList(text *bytes.Buffer, list []Endpoint) error {
	separator := "\n"
	for _, endpoint := range list {
		line, err := json.Marshal(endpoint)
		if err != nil {
			return fmt.Errorf("encode builder %s: %w", endpoint.ID(), err)
		}
		text.WriteString(separator)
		text.Write(line)
		separator = ",\n"
	}
	text.WriteString("\n]")
	return nil
}

// Decode reads a document. Fields that it does not know are ignored, so that
// a dispatcher can read what a newer operator writes; another schema version
// is a *VersionError.
func Decode(text []byte) (Document, error) {
	if len(text) > MaxSize {
		return Document{}, fmt.Errorf("read the list of builders: %w", ErrTooLarge)
	}
	// The version goes first: of another one, not even the types are known.
	var version struct {
		SchemaVersion *int `json:"schemaVersion"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return Document{}, fmt.Errorf("read the list of builders: %w", err)
	}
	if version.SchemaVersion == nil {
		return Document{}, errors.New("read the list of builders: it has no schemaVersion")
	}
	if *version.SchemaVersion != SchemaVersion {
		return Document{}, &VersionError{Version: *version.SchemaVersion}
	}
	var written struct {
		Document
		JumpBuilders []Endpoint `json:"jumpBuilders"`
	}
	if err := json.Unmarshal(text, &written); err != nil {
		return Document{}, fmt.Errorf("read the list of builders: %w", err)
	}
	document := written.Document
	for _, endpoint := range written.JumpBuilders {
		if endpoint.Jump == nil {
			return Document{}, fmt.Errorf("read the list of builders: builder %q is behind a jump host that is missing", endpoint.ID())
		}
		document.Builders = append(document.Builders, endpoint)
	}
	for i := range document.Builders {
		document.Builders[i] = normalised(document.Builders[i])
	}
	slices.SortFunc(document.Builders, compareIDs)
	if err := validate(document.Builders); err != nil {
		return Document{}, fmt.Errorf("read the list of builders: %w", err)
	}
	return document, nil
}

func compareIDs(a, b Endpoint) int {
	return cmp.Or(cmp.Compare(a.Builder, b.Builder), cmp.Compare(a.Name, b.Name))
}

// normalised gives an endpoint that differs from equal ones in nothing.
func normalised(endpoint Endpoint) Endpoint {
	endpoint.HostKeys = set(endpoint.HostKeys)
	endpoint.CertificateAuthorities = set(endpoint.CertificateAuthorities)
	if endpoint.Jump != nil {
		jump := *endpoint.Jump
		jump.HostKeys, jump.CertificateAuthorities = set(jump.HostKeys), set(jump.CertificateAuthorities)
		endpoint.Jump = &jump
	}
	endpoint.Systems = set(endpoint.Systems)
	endpoint.SupportedFeatures = set(endpoint.SupportedFeatures)
	endpoint.MandatoryFeatures = set(endpoint.MandatoryFeatures)
	endpoint.Since = seconds(endpoint.Since)
	switch endpoint.State {
	case StateHealthy, StateSuspect, StateUnhealthy:
	default:
		endpoint.State = StateUnknown
	}
	if endpoint.Cordon != nil {
		cordon := *endpoint.Cordon
		if cordon.Until != nil {
			until := seconds(*cordon.Until)
			cordon.Until = &until
		}
		endpoint.Cordon = &cordon
	}
	return endpoint
}

// seconds drops what the API does not keep of a time either.
func seconds(at time.Time) time.Time { return at.UTC().Truncate(time.Second) }

// set gives the elements sorted and without repetition, nil for none.
func set(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	sorted := slices.Clone(list)
	slices.Sort(sorted)
	return slices.Compact(sorted)
}

// validate checks endpoints that are sorted by ID.
func validate(builders []Endpoint) error {
	for i, endpoint := range builders {
		if err := endpoint.validate(); err != nil {
			return fmt.Errorf("builder %q: %w", endpoint.ID(), err)
		}
		if i > 0 && builders[i-1].ID() == endpoint.ID() {
			return fmt.Errorf("builder %q is listed twice", endpoint.ID())
		}
	}
	return nil
}
