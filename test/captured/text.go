// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package captured keeps what programs and loggers write while a test looks at it.
package captured

import (
	"bytes"
	"strings"
	"sync"
)

// Text keeps all that is written to it. It may be written to and read at the same
// time. The zero value is empty and ready for use.
type Text struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer. It never fails.
func (t *Text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

// String is all that was written so far, with "?" for what is not UTF-8.
func (t *Text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(t.text.String(), "?")
}
