// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

const rolePath = "config/rbac/role.yaml"

// copyRules writes the operator's rules as a named template.
func copyRules(root string) error {
	text, err := os.ReadFile(filepath.Join(root, rolePath))
	if err != nil {
		return err
	}
	template, err := rulesTemplate(text)
	if err != nil {
		return fmt.Errorf("%s: %w", rolePath, err)
	}
	return os.WriteFile(filepath.Join(root, templatesDir, "rbac", "_rules.tpl"), template, 0o644)
}

// rulesTemplate takes the rules of a ClusterRole. They have to make sense in a
// Role too, so they may name no URLs.
func rulesTemplate(text []byte) ([]byte, error) {
	var role rbacv1.ClusterRole
	if err := yaml.UnmarshalStrict(text, &role); err != nil {
		return nil, err
	}
	if role.Kind != "ClusterRole" || len(role.Rules) == 0 {
		return nil, errors.New("not a single ClusterRole with rules")
	}
	for _, rule := range role.Rules {
		if len(rule.NonResourceURLs) > 0 {
			return nil, fmt.Errorf("the rule for %v cannot be part of a Role", rule.NonResourceURLs)
		}
	}
	rules, err := yaml.Marshal(role.Rules)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, generated, rolePath)
	out.WriteString("{{- define \"nix-builder-operator.managerRules\" -}}\n")
	out.WriteString(escape(string(rules)))
	out.WriteString("{{- end }}\n")
	return out.Bytes(), nil
}
