// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package metrics

import (
	"sync"
	"unicode/utf8"

	"nixbuilder.io/nix-builder-operator/internal/scheduler"
)

const (
	// maxClasses bounds the values of the label class. Derivations can ask for any
	// system and feature, so it is clients who make classes.
	maxClasses = 100
	// maxClassLength bounds one of them, in bytes.
	maxClassLength = 120
	// otherClasses stands for all that go beyond.
	otherClasses = "other"
)

// classNames gives classes of builds their label. A class keeps it as long as the
// process lives. It is safe for concurrent use.
type classNames struct {
	most int

	mu     sync.Mutex
	labels map[string]scheduler.Class
}

func newClassNames(most int) *classNames {
	return &classNames{most: most, labels: map[string]scheduler.Class{}}
}

// label is the class in words, "x86_64-linux with kvm", or otherClasses.
func (c *classNames) label(class scheduler.Class) string {
	name := class.String()
	if len(name) > maxClassLength || !utf8.ValidString(name) {
		return otherClasses
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.labels[name]; !known {
		if len(c.labels) >= c.most {
			return otherClasses
		}
		c.labels[name] = class
	}
	return name
}

// seen returns the classes that have labels of their own, by label.
func (c *classNames) seen() map[string]scheduler.Class {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[string]scheduler.Class, len(c.labels))
	for name, class := range c.labels {
		all[name] = class
	}
	return all
}
