// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package diagnosis

func specCauses() []cause { return nil }

func secretCauses() []cause { return nil }

func keyCauses() []cause { return nil }

func handshakeCauses() []cause { return nil }

func hostKeyCauses() []cause { return nil }

func hostCertificateCauses() []cause { return nil }

func loginCauses() []cause { return nil }

func sessionCauses() []cause { return nil }
