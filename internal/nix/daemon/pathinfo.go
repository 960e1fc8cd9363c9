// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"encoding/hex"
	"math"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// PathInfo is what a store knows about a valid path.
type PathInfo struct {
	// Path is the full store path.
	Path string
	// Deriver is the store path of the derivation that made it, or "".
	Deriver string
	// NARHash is the SHA-256 of the archive in base 16, without a prefix.
	NARHash string
	// References are full store paths; the path itself may be among them.
	References []string
	// RegistrationTime is in seconds since 1970, 0 where unknown.
	RegistrationTime int64
	// NARSize is the size of the archive in bytes, 0 where unknown.
	NARSize uint64
	// Ultimate means that the path was built by the store that says so.
	Ultimate bool
	// Signatures have the form "key:base64".
	Signatures []string
	// CA is the content address, "" for input-addressed paths.
	CA string
}

func (p *PathInfo) encode(w *wire.Writer) {
	w.String(p.Path)
	p.encodeUnkeyed(w)
}

func (p *PathInfo) encodeUnkeyed(w *wire.Writer) {
	w.String(p.Deriver)
	w.String(p.NARHash)
	w.Strings(p.References)
	w.Uint64(uint64(p.RegistrationTime))
	w.Uint64(p.NARSize)
	w.Bool(p.Ultimate)
	w.Strings(p.Signatures)
	w.String(p.CA)
}

// pathInfo reads a path and what is known about it.
func (d *decoder) pathInfo() *PathInfo {
	return d.unkeyedPathInfo(d.path("path"))
}

// unkeyedPathInfo reads what is known about path.
func (d *decoder) unkeyedPathInfo(path string) *PathInfo {
	p := &PathInfo{
		Path:             path,
		Deriver:          d.optionalPath("deriver"),
		NARHash:          d.narHash(),
		References:       d.paths("references"),
		RegistrationTime: int64(d.Enum("registration time", math.MaxInt64)),
		NARSize:          d.Enum("archive size", uint64(d.limits.NAR)),
		Ultimate:         d.Bool("ultimate"),
		Signatures:       d.Strings("signatures", limitSignatures, limitSignature),
		CA:               d.String("content address", limitCA),
	}
	if d.Err() != nil {
		return nil
	}
	return p
}

func (d *decoder) narHash() string {
	s := d.String("archive hash", limitHash)
	if b, err := hex.DecodeString(s); d.Err() == nil && (err != nil || len(b) != 32) {
		d.Fail("archive hash", "%q is not a SHA-256 in base 16", s)
	}
	return s
}
