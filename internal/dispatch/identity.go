// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package dispatch

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"maps"
	"slices"

	"nixbuilder.io/nix-builder-operator/internal/nix/daemon"
)

// errUnknownHash means that the content of an input is not known here.
var errUnknownHash = errors.New("the content of an input is not known")

// identity returns a text that equal builds share: those with the same derivation,
// path included, and the same content of every input. It is empty for builds that are
// not shared:
//
//   - those with an output whose path is not known before the build. Such an output
//     may come out differently each time, and an impure one must be built each time;
//   - those bound to a builder, whose inputs nobody here has seen;
//   - those with an input of unknown content.
//
// Only the end of ctx is an error.
func (s *supplier) identity(ctx context.Context, r *daemon.BuildDerivation) (string, error) {
	if s.bound != nil {
		return "", nil
	}
	for _, out := range r.Derivation.Outputs {
		if kind := out.Kind(); kind != daemon.OutputInputAddressed && kind != daemon.OutputFixed {
			return "", nil
		}
	}
	// Sharing is worth a question to builders, but not the wait for one that hangs.
	asking, cancel := context.WithTimeout(ctx, s.server.limits.Locate)
	defer cancel()
	hashes, err := s.inputHashes(asking, s.needed(r.Derivation))
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil:
		return "", nil
	}
	d := digest{sha256.New()}
	d.text(r.DrvPath)
	d.derivation(r.Derivation)
	// A derivation that Nix itself carries out runs on any platform.
	d.text(s.class.System)
	d.number(len(hashes))
	for _, path := range slices.Sorted(maps.Keys(hashes)) {
		d.text(path)
		d.text(hashes[path])
	}
	return string(d.Sum(nil)), nil
}

// digest hashes fields so that no two sequences of fields look the same.
type digest struct{ hash.Hash }

func (d digest) number(n int) {
	d.Write(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

func (d digest) text(s string) {
	d.number(len(s))
	_, _ = io.WriteString(d, s) // hashes do not fail
}

func (d digest) texts(list []string) {
	d.number(len(list))
	for _, s := range list {
		d.text(s)
	}
}

func (d digest) derivation(drv *daemon.BasicDerivation) {
	d.number(len(drv.Outputs))
	for _, out := range drv.Outputs {
		d.texts([]string{out.Name, out.Path, out.HashAlgo, out.Hash})
	}
	d.texts(drv.InputSources)
	d.texts([]string{drv.Platform, drv.Builder})
	d.texts(drv.Args)
	d.number(len(drv.Env))
	for _, v := range drv.Env {
		d.texts([]string{v.Name, v.Value})
	}
}
