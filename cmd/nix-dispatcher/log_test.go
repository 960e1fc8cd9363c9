// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestLogHasNoColours(t *testing.T) {
	const red = "\x1b[31;1merror:\x1b[0m builder failed"
	for format, want := range map[string][]string{
		"text": {`status="error: builder failed"`, `error="error: builder failed"`, "seconds=1.5"},
		"json": {`"status":"error: builder failed"`, `"error":"error: builder failed"`, `"seconds":1.5`},
	} {
		t.Run(format, func(t *testing.T) {
			var out bytes.Buffer
			options{logFormat: format}.logger(&out).Info("Build failed", "status", red, "error", errors.New(red), "seconds", 1.5)
			for _, part := range want {
				if !strings.Contains(out.String(), part) {
					t.Errorf("%s is not in %s", part, out.String())
				}
			}
		})
	}
}
