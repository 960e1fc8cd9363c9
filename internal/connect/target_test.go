// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package connect

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseTarget(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		in        string
		want      Target
		wantError string
	}{
		"plain":             {in: "x86_64-linux.0", want: Target{Class: "x86_64-linux"}},
		"class with dots":   {in: "x86_64-linux.kvm-1.12", want: Target{Class: "x86_64-linux.kvm-1", Slot: 12}},
		"highest slot":      {in: "c.65535", want: Target{Class: "c", Slot: 65535}},
		"longest class":     {in: strings.Repeat("a", MaxClass) + ".1", want: Target{Class: strings.Repeat("a", MaxClass), Slot: 1}},
		"empty":             {in: "", wantError: "it has no dot"},
		"no dot":            {in: "auto", wantError: `"auto" is not <class>.<slot>: it has no dot`},
		"no class":          {in: ".1", wantError: "the class is empty"},
		"no slot":           {in: "c.", wantError: "no number within 0 and 65535"},
		"slot too high":     {in: "c.65536", wantError: "no number within"},
		"negative slot":     {in: "c.-1", wantError: "no number within"},
		"leading zero":      {in: "c.01", wantError: "no number within"},
		"plus sign":         {in: "c.+1", wantError: "no number within"},
		"class too long":    {in: strings.Repeat("a", MaxClass+1) + ".1", wantError: "more than 128"},
		"space in class":    {in: "a b.1", wantError: "a byte other than"},
		"control character": {in: "a\n# accept.1", wantError: `"a\n# accept.1"`},
		"long text is cut":  {in: strings.Repeat("é ", 300), wantError: "…\" is not"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseTarget(tc.in)
			if tc.wantError != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantError) {
					t.Fatalf("ParseTarget(%q) error = %v, want one with %q", tc.in, err, tc.wantError)
				}
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("error %q spans lines", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("target (-want +got):\n%s", diff)
			}
			if got.String() != tc.in {
				t.Errorf("String() = %q, want %q", got.String(), tc.in)
			}
		})
	}
}

func TestTargetValidate(t *testing.T) {
	t.Parallel()
	for _, bad := range []Target{{}, {Class: "c", Slot: -1}, {Class: "c", Slot: MaxSlot + 1}, {Class: "c/d"}, {Class: "c\x00"}} {
		if bad.Validate() == nil {
			t.Errorf("Validate(%+v) found nothing", bad)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"x86_64-linux.0", "a.b.3", "", ".", "c.65536", "c.01", "\xff.1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := ParseTarget(in)
		if err != nil {
			return
		}
		if err := got.Validate(); err != nil {
			t.Errorf("ParseTarget(%q) = %+v: %v", in, got, err)
		}
		if got.String() != in {
			t.Errorf("ParseTarget(%q).String() = %q", in, got.String())
		}
	})
}
