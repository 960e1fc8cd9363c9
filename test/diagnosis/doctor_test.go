// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

import (
	"os"
	"path/filepath"
)

// plugin is the command-line tool, which has to say the same as the conditions.
const plugin = "kubectl-nixbuilder"

// consultDoctor has the tool examine the patient.
func (s *site) consultDoctor(p *patient, want diagnosis, got finding) {
	p.Helper()
	if _, err := os.Stat(filepath.Join(os.Getenv(programsVariable), plugin)); err != nil {
		return
	}
}
