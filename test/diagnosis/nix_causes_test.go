// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

// nixCauses are those found after the login.
func nixCauses() []cause { return nil }
