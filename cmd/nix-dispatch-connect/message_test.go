// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// spoken is what a line of the internal log says, if it is an error message.
func spoken(line string) (text string, ok bool) {
	body, ok := strings.CutPrefix(line, "@nix ")
	if !ok || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		return "", false
	}
	m := struct {
		Action string `json:"action"`
		Level  int    `json:"level"`
		Msg    string `json:"msg"`
	}{Level: -1}
	if err := json.Unmarshal([]byte(body), &m); err != nil || m.Action != "msg" || m.Level != 0 {
		return "", false
	}
	return m.Msg, true
}

func TestMessage(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for r := range rune(0x180) {
		all.WriteRune(r)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"empty":       {"", ""},
		"words":       {"nobody listens", "nobody listens"},
		"an answer":   {"\n# accept\n", "\n# accept\n"},
		"quotes":      {`a "path" \ x`, `a "path" \ x`},
		"characters":  {all.String() + "\u2028😀", all.String() + "\u2028😀"},
		"not UTF-8":   {"a\xffb", "a\ufffdb"},
		"end of line": {"a\r\nb", "a\r\nb"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, ok := spoken(message(tc.text)); !ok || got != tc.want {
				t.Errorf("message(%q) = %q, which says %q", tc.text, message(tc.text), got)
			}
		})
	}
}
