// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package envtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Assets returns the directory that holds etcd, kube-apiserver and kubectl:
// KUBEBUILDER_ASSETS, else where `make envtest` puts them. The error is one
// line that says what to run.
func Assets() (string, error) {
	dir := os.Getenv("KUBEBUILDER_ASSETS")
	if dir == "" {
		root, err := repository()
		if err != nil {
			return "", err
		}
		output, err := exec.Command(filepath.Join(root, "hack", "kubernetes", "build.sh"), "--where").Output()
		if err != nil {
			return "", fmt.Errorf("ask hack/kubernetes/build.sh where the API server is: %w", err)
		}
		dir = strings.TrimSpace(string(output))
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("no %s in %s: run `make envtest`", name, dir)
		}
	}
	return dir, nil
}

// repository returns the root of the source tree that the working directory
// lies in: tests run in the directory of their package.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module nixbuilder.io/nix-builder-operator\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("not within the nix-builder-operator source tree: set KUBEBUILDER_ASSETS and Options.CRDs")
		}
	}
}
