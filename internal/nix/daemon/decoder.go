// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"io"

	"nixbuilder.io/nix-builder-operator/internal/nix/storepath"
	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// decoder reads the protocol's types. Version is what the ends agreed on: our own
// never go above Protocol, recorded streams of others do.
type decoder struct {
	*wire.Reader
	limits  Limits
	dir     string
	version Version
}

func newDecoder(r io.Reader, limits Limits, dir string) *decoder {
	if dir == "" {
		dir = storepath.DefaultDir
	}
	return &decoder{Reader: wire.NewReader(r), limits: limits.withDefaults(), dir: dir, version: Protocol}
}

// nested returns a decoder of the same kind on another stream.
func (d *decoder) nested(r io.Reader) *decoder {
	sub := *d
	sub.Reader = wire.NewReader(r)
	return &sub
}

// path reads a store path.
func (d *decoder) path(field string) string {
	s := d.String(field, limitPath)
	d.checkPath(field, s)
	return s
}

// optionalPath reads a store path or the empty string.
func (d *decoder) optionalPath(field string) string {
	s := d.String(field, limitPath)
	if s != "" {
		d.checkPath(field, s)
	}
	return s
}

// paths reads a list of store paths.
func (d *decoder) paths(field string) []string {
	list := d.Strings(field, d.limits.Paths, limitPath)
	for _, s := range list {
		d.checkPath(field, s)
	}
	if d.Err() != nil {
		return nil
	}
	return list
}

// derivationPath reads the store path of a derivation.
func (d *decoder) derivationPath(field string) string {
	s := d.String(field, limitPath)
	if p := d.checkPath(field, s); d.Err() == nil && !p.IsDerivation() {
		d.Fail(field, "%q is not the path of a derivation", s)
	}
	return s
}

func (d *decoder) checkPath(field, s string) storepath.Path {
	if d.Err() != nil {
		return storepath.Path{}
	}
	p, err := storepath.Parse(d.dir, s)
	if err != nil {
		d.Fail(field, "%v", err)
	}
	return p
}
