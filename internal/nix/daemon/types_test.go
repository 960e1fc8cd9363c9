// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

func TestNames(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		got  interface{ String() string }
		want string
	}{
		"version":           {Protocol, "1.35"},
		"oldest version":    {OldestProtocol, "1.34"},
		"operation":         {OpBuildDerivation, "BuildDerivation (36)"},
		"not offered":       {Operation(20), "CollectGarbage (20)"},
		"unknown operation": {Operation(1000), "operation 1000"},
		"trusted":           {Trusted, "trusted"},
		"not trusted":       {NotTrusted, "not trusted"},
		"trust unknown":     {TrustUnknown, "trust unknown"},
		"normal":            {BuildNormal, "normal (0)"},
		"repair":            {BuildRepair, "repair (1)"},
		"check":             {BuildCheck, "check (2)"},
		"unknown mode":      {BuildMode(7), "7"},
		"status":            {StatusTimedOut, "TimedOut (8)"},
		"last status":       {StatusNoSubstituters, "NoSubstituters (14)"},
		"unknown status":    {BuildStatus(99), "status 99"},
	}
	for name, tc := range tests {
		if got := tc.got.String(); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestPathInfo(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		info  PathInfo
		bytes string
	}{
		"least": {
			info:  PathInfo{Path: pathA, NARHash: hashA},
			bytes: str(pathA) + word(0) + str(hashA) + words(0, 0, 0, 0, 0, 0),
		},
		"everything": {
			info: PathInfo{
				Path: pathA, Deriver: pathDrv, NARHash: hashA, References: []string{pathA, pathB},
				RegistrationTime: 1795500000, NARSize: 128, Ultimate: true, Signatures: []string{"key:c2ln"}, CA: "text:sha256:x",
			},
			bytes: str(pathA) + str(pathDrv) + str(hashA) + strs(pathA, pathB) +
				words(1795500000, 128, 1) + strs("key:c2ln") + str("text:sha256:x"),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.bytes, encoded(t, tc.info.encode)); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
			var got *PathInfo
			if err := decode(tc.bytes, func(d *decoder) { got = d.pathInfo() }); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tc.info, got); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMalformedPathInfo(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ input, want string }{
		"path elsewhere":         {str("/etc/passwd"), "is not in the store"},
		"path with parent":       {str("/nix/store/../../etc/passwd"), "has no hash"},
		"path too long":          {word(4097), "path at byte 0: length 4097 exceeds the limit of 4096"},
		"deriver":                {str(pathA) + str("x"), "deriver"},
		"hash empty":             {str(pathA) + word(0) + str(""), `"" is not a SHA-256`},
		"hash in base 32":        {str(pathA) + word(0) + str("0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"), "is not a SHA-256"},
		"hash too short":         {str(pathA) + word(0) + str(hashA[2:]), "is not a SHA-256"},
		"reference":              {str(pathA) + word(0) + str(hashA) + strs("y"), "references"},
		"too many references":    {str(pathA) + word(0) + str(hashA) + word(11), "count 11 exceeds the limit of 10"},
		"time before 1970":       {str(pathA) + word(0) + str(hashA) + word(0) + word(math.MaxUint64), "registration time"},
		"archive over the limit": {str(pathA) + word(0) + str(hashA) + words(0, 0, 1<<30+1), "archive size"},
		"ultimate":               {str(pathA) + word(0) + str(hashA) + words(0, 0, 0, 2), "2 is not a boolean"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got *PathInfo
			err := decode(tc.input, func(d *decoder) { got = d.pathInfo() })
			if got != nil || !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("decoded %v, %v, want an error with %q", got, err, tc.want)
			}
		})
	}
}

func TestBuildResult(t *testing.T) {
	t.Parallel()
	user, system := 1500*time.Microsecond, time.Duration(0)
	const dummy = `{"id":"sha256:0000000000000000000000000000000000000000000000000000000000000000!out","outPath":"00000000000000000000000000000000-a"}`
	const id = "sha256:0000000000000000000000000000000000000000000000000000000000000000!out"
	tests := map[string]struct {
		version Version
		result  BuildResult
		bytes   string
	}{
		"built at 1.34": {
			version: 0x122,
			result:  BuildResult{Status: StatusBuilt, TimesBuilt: 1, StartTime: 5, StopTime: 6},
			bytes:   words(0, 0, 1, 0, 5, 6, 0),
		},
		"failed at 1.35": {
			version: 0x123,
			result:  BuildResult{Status: StatusPermanentFailure, ErrorMessage: "\x1b[31mexit 1\x1b[0m", NonDeterministic: true},
			bytes:   word(3) + str("\x1b[31mexit 1\x1b[0m") + words(0, 1, 0, 0, 0),
		},
		"dummy realisation": {
			version: 0x123,
			result:  BuildResult{BuiltOutputs: []BuiltOutput{{ID: id, Realisation: dummy}}},
			bytes:   words(0, 0, 0, 0, 0, 0, 1) + str(id) + str(dummy),
		},
		"CPU times at 1.37": {
			version: 0x125,
			result:  BuildResult{CPUUser: &user, CPUSystem: &system},
			bytes:   words(0, 0, 0, 0, 0, 0) + words(1, 1500) + words(1, 0) + word(0),
		},
		"no CPU times at 1.38": {
			version: 0x126,
			result:  BuildResult{},
			bytes:   words(0, 0, 0, 0, 0, 0) + words(0, 0) + word(0),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := encoded(t, func(w *wire.Writer) { tc.result.encode(w, tc.version) })
			if diff := cmp.Diff(tc.bytes, got); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
			var result *BuildResult
			err := decode(tc.bytes, func(d *decoder) { d.version = tc.version; result = d.buildResult() })
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tc.result, result); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
	if got := (BuiltOutput{ID: id}).Name(); got != "out" {
		t.Errorf("Name = %q", got)
	}
}

func TestStatusesAreThoseThatAllClientsKnow(t *testing.T) {
	t.Parallel()
	for sent := range uint64(256) {
		want := BuildStatus(sent)
		switch {
		case sent == 15:
			want = StatusOutputRejected
		case sent > 14:
			want = StatusMiscFailure
		}
		var got *BuildResult
		err := decode(words(sent, 0, 0, 0, 0, 0, 0), func(d *decoder) { got = d.buildResult() })
		if err != nil || got.Status != want {
			t.Errorf("status %d decoded as %v, %v, want %v", sent, got, err, want)
		}
		out := encoded(t, func(w *wire.Writer) { (&BuildResult{Status: BuildStatus(sent)}).encode(w, Protocol) })
		if out[:8] != word(uint64(want)) {
			t.Errorf("status %d encoded as %q, want %d", sent, out[:8], want)
		}
		wantSuccess := sent <= 2 || sent == 13
		if got.Status.Success() != wantSuccess {
			t.Errorf("status %d: Success = %t", sent, got.Status.Success())
		}
	}
}

func TestMalformedBuildResult(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		version Version
		input   string
		want    string
	}{
		"status over a byte": {input: word(256), want: "build status"},
		"boolean":            {input: words(0, 0, 0, 3), want: "non-deterministic"},
		"start time":         {input: words(0, 0, 0, 0, math.MaxUint64), want: "start time"},
		"output count":       {input: words(0, 0, 0, 0, 0, 0, 1<<32), want: "built output count"},
		"output id":          {input: words(0, 0, 0, 0, 0, 0, 1, 1<<20), want: "built output id"},
		"CPU mark":           {version: 0x125, input: words(0, 0, 0, 0, 0, 0, 2), want: "user CPU time mark"},
		"CPU time":           {version: 0x125, input: words(0, 0, 0, 0, 0, 0, 1, math.MaxInt64), want: "user CPU time"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got *BuildResult
			err := decode(tc.input, func(d *decoder) {
				d.version = max(tc.version, Protocol)
				got = d.buildResult()
			})
			if got != nil || !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("decoded %v, %v, want an error with %q", got, err, tc.want)
			}
		})
	}
}
