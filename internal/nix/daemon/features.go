// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

const (
	// envFeatures is the variable that lists required system features, envJSON the
	// one that holds all attributes of a derivation with structured attributes.
	envFeatures = "requiredSystemFeatures"
	envJSON     = "__json"
	// featureCA is required, unasked, by derivations whose output paths are known
	// only after the build.
	featureCA = "ca-derivations"
)

// RequiredSystemFeatures returns what a builder must support to be given the
// derivation, sorted, as Nix computes it. An error means that the derivation's
// structured attributes cannot be read.
func (d *BasicDerivation) RequiredSystemFeatures() ([]string, error) {
	features, err := d.declaredFeatures()
	if err != nil {
		return nil, err
	}
	for _, o := range d.Outputs {
		if k := o.Kind(); k != OutputInputAddressed && k != OutputFixed {
			features = append(features, featureCA)
			break
		}
	}
	slices.Sort(features)
	return slices.Compact(features), nil
}

func (d *BasicDerivation) declaredFeatures() ([]string, error) {
	text, ok := d.lookup(envJSON)
	if !ok {
		list, _ := d.lookup(envFeatures)
		return strings.Fields(list), nil
	}
	var attrs struct {
		Features []string `json:"requiredSystemFeatures"`
	}
	if err := json.Unmarshal([]byte(text), &attrs); err != nil {
		return nil, fmt.Errorf("read requiredSystemFeatures from the structured attributes: %w", err)
	}
	return attrs.Features, nil
}
