// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestAdd(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		log       string
		want      string
		wantError bool
	}{
		"nothing ran": {want: "0 passed, 0 failed, 0 skipped"},
		"tests and subtests of several packages": {
			log: `{"Action":"start","Package":"a"}
{"Action":"run","Package":"a","Test":"TestA"}
{"Action":"output","Package":"a","Test":"TestA/one","Output":"fail"}
{"Action":"pass","Package":"a","Test":"TestA/one"}
{"Action":"pass","Package":"a","Test":"TestA"}
{"Action":"pass","Package":"a"}
{"Action":"skip","Package":"b","Test":"TestB"}
{"Action":"fail","Package":"b","Test":"TestC"}
{"Action":"fail","Package":"b"}
{"Action":"skip","Package":"c"}
`,
			want: "2 passed, 1 failed, 1 skipped",
		},
		"Ginkgo suite": {
			log: `{"Action":"output","Package":"a","Test":"TestA","Output":"\u001b[1mSUCCESS!\u001b[0m -- \u001b[38;5;10m\u001b[1m110 Passed\u001b[0m | \u001b[1m0 Failed\u001b[0m | 2 Pending | 3 Skipped\n"}
{"Action":"pass","Package":"a","Test":"TestA"}
`,
			want: "111 passed, 0 failed, 5 skipped",
		},
		"package that does not compile": {
			log: `{"ImportPath":"a","Action":"build-output","Output":"x.go:1: undefined: y\n"}
{"ImportPath":"a","Action":"build-fail"}
{"Action":"fail","Package":"a"}
`,
			want: "0 passed, 1 failed, 0 skipped",
		},
		"package that ended before its test": {
			log: `{"Action":"run","Package":"a","Test":"TestA"}
{"Action":"fail","Package":"a"}
`,
			want: "0 passed, 1 failed, 0 skipped",
		},
		"not a log": {log: "ok\n", wantError: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got counts
			err := got.add(strings.NewReader(tc.log))
			if (err != nil) != tc.wantError {
				t.Fatalf("add: %v, want an error: %t", err, tc.wantError)
			}
			if err == nil && got.String() != tc.want {
				t.Errorf("counted %q, want %q", got, tc.want)
			}
		})
	}
}

func TestAddFileMissing(t *testing.T) {
	t.Parallel()
	var got counts
	if err := got.addFile(filepath.Join(t.TempDir(), "test.json")); err == nil {
		t.Error("a missing log is no error")
	}
}
