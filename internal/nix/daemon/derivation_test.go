// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// sampleDerivation returns a derivation and its encoding.
func sampleDerivation() (*BasicDerivation, string) {
	drv := &BasicDerivation{
		Outputs: []DerivationOutput{{Name: "out", Path: pathB}}, InputSources: []string{pathA},
		Platform: "x86_64-linux", Builder: "/bin/sh", Args: []string{"-c", ":"}, Env: []EnvVar{{"a", "b"}},
	}
	drvBytes := word(1) + str("out") + str(pathB) + str("") + str("") + strs(pathA) + str("x86_64-linux") +
		str("/bin/sh") + strs("-c", ":") + word(1) + str("a") + str("b")
	return drv, drvBytes
}

func TestDerivation(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		drv   BasicDerivation
		bytes string
	}{
		"everything": {
			drv: BasicDerivation{
				Outputs: []DerivationOutput{
					{Name: "out", Path: pathA},
					{Name: "fixed", Path: pathB, HashAlgo: "r:sha256", Hash: hashA},
					{Name: "floating", HashAlgo: "r:sha256"},
				},
				InputSources: []string{pathB},
				Platform:     "x86_64-linux",
				Builder:      "/bin/sh",
				Args:         []string{"-c", "echo hi > $out"},
				Env:          []EnvVar{{"out", pathA}, {"bytes", "\xff\x00"}, {"out", "again"}},
			},
			bytes: word(3) +
				str("out") + str(pathA) + str("") + str("") +
				str("fixed") + str(pathB) + str("r:sha256") + str(hashA) +
				str("floating") + str("") + str("r:sha256") + str("") +
				strs(pathB) + str("x86_64-linux") + str("/bin/sh") + strs("-c", "echo hi > $out") +
				word(3) + str("out") + str(pathA) + str("bytes") + str("\xff\x00") + str("out") + str("again"),
		},
		"nothing": {
			bytes: words(0, 0, 0, 0, 0, 0),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.bytes, encoded(t, tc.drv.encode)); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
			var got *BasicDerivation
			if err := decode(tc.bytes, func(d *decoder) { got = d.derivation() }); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tc.drv, got); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMalformedDerivation(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ input, want string }{
		"output count":   {word(1 << 63), "output count"},
		"output path":    {word(1) + str("out") + str("x"), "output path"},
		"input":          {word(0) + strs("/etc/passwd"), "input sources"},
		"platform":       {words(0, 0, 1<<20), "platform"},
		"argument count": {words(0, 0, 0, 0, 1<<40), "arguments count"},
		"environment":    {words(0, 0, 0, 0, 0, 1<<40), "environment count"},
		"value":          {words(0, 0, 0, 0, 0, 1, 0, 1<<64-2), "environment value"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got *BasicDerivation
			err := decode(tc.input, func(d *decoder) { got = d.derivation() })
			if got != nil || !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("decoded %v, %v, want an error with %q", got, err, tc.want)
			}
		})
	}
}

func TestOutputKinds(t *testing.T) {
	t.Parallel()
	plain := DerivationOutput{Name: "out", Path: pathA}
	fixed := DerivationOutput{Name: "out", Path: pathA, HashAlgo: "sha256", Hash: hashA}
	floating := DerivationOutput{Name: "out", HashAlgo: "r:sha256"}
	deferred := DerivationOutput{Name: "out"}
	impure := DerivationOutput{Name: "out", HashAlgo: "r:sha256", Hash: "impure"}
	tests := map[string]struct {
		outputs   []DerivationOutput
		wantKind  OutputKind
		wantFixed bool
		wantCA    bool
	}{
		"input-addressed": {outputs: []DerivationOutput{plain}, wantKind: OutputInputAddressed},
		"fixed":           {outputs: []DerivationOutput{fixed}, wantKind: OutputFixed, wantFixed: true},
		"floating":        {outputs: []DerivationOutput{floating}, wantKind: OutputFloating, wantCA: true},
		"deferred":        {outputs: []DerivationOutput{deferred}, wantKind: OutputDeferred, wantCA: true},
		"impure":          {outputs: []DerivationOutput{impure}, wantKind: OutputImpure, wantCA: true},
		"one not fixed":   {outputs: []DerivationOutput{fixed, plain}, wantKind: OutputFixed},
		"two floating":    {outputs: []DerivationOutput{floating, floating}, wantKind: OutputFloating, wantCA: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drv := BasicDerivation{Outputs: tc.outputs}
			if got := tc.outputs[0].Kind(); got != tc.wantKind {
				t.Errorf("Kind = %d, want %d", got, tc.wantKind)
			}
			if got := drv.FixedOutput(); got != tc.wantFixed {
				t.Errorf("FixedOutput = %t", got)
			}
			var want []string
			if tc.wantCA {
				want = []string{"ca-derivations"}
			}
			got, err := drv.RequiredSystemFeatures()
			if err != nil || cmp.Diff(want, got, cmpopts.EquateEmpty()) != "" {
				t.Errorf("RequiredSystemFeatures = %v, %v", got, err)
			}
		})
	}
	if (&BasicDerivation{}).FixedOutput() {
		t.Error("a derivation without outputs is not fixed")
	}
}

func TestRequiredSystemFeatures(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		env     []EnvVar
		want    []string
		wantErr string
	}{
		"none":        {env: []EnvVar{{"name", "x"}}},
		"empty":       {env: []EnvVar{{"requiredSystemFeatures", ""}}},
		"several":     {env: []EnvVar{{"requiredSystemFeatures", " kvm  big-parallel\nkvm "}}, want: []string{"big-parallel", "kvm"}},
		"structured":  {env: []EnvVar{{"__json", `{"name":"x","requiredSystemFeatures":["nixos-test","kvm"]}`}}, want: []string{"kvm", "nixos-test"}},
		"without":     {env: []EnvVar{{"__json", `{"name":"x"}`}}},
		"json wins":   {env: []EnvVar{{"requiredSystemFeatures", "kvm"}, {"__json", `{}`}}},
		"not JSON":    {env: []EnvVar{{"__json", `{`}}, wantErr: "read requiredSystemFeatures from the structured attributes"},
		"not a list":  {env: []EnvVar{{"__json", `{"requiredSystemFeatures":"kvm"}`}}, wantErr: "requiredSystemFeatures"},
		"not strings": {env: []EnvVar{{"__json", `{"requiredSystemFeatures":[1]}`}}, wantErr: "requiredSystemFeatures"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drv := BasicDerivation{Env: tc.env}
			got, err := drv.RequiredSystemFeatures()
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error = %v, want one with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("features (-want +got):\n%s", diff)
			}
		})
	}
}
