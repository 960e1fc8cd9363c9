// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Command chart copies what controller-gen makes into the Helm chart: the CRDs
// of config/crd/bases become templates with the switches crds.enabled and
// crds.keep, and the rules of config/rbac/role.yaml a named template, which the
// chart uses for a ClusterRole or for Roles. Run it at the root of the source
// tree, as `make chart` does.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

// run updates the chart of the source tree at root. Templates of CRDs that are
// gone are removed.
func run(root string) error {
	if err := copyCRDs(root); err != nil {
		return fmt.Errorf("copy CRDs: %w", err)
	}
	if err := copyRules(root); err != nil {
		return fmt.Errorf("copy rules: %w", err)
	}
	return nil
}
