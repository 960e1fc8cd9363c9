// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

// Package nar passes Nix archives (NARs) on without unpacking them.
//
// In the worker protocol a NAR has no length: its end is known only by following
// its structure. A [Reader] does that on the bytes as they pass, in constant
// memory and without copying them, and refuses what Nix would not unpack: names
// that are unsorted, empty, "." or "..", or hold a slash.
package nar

import (
	"errors"
	"fmt"
	"io"
	"math"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// Reader yields the bytes of exactly one NAR and then io.EOF. It never consumes
// a byte behind the NAR's end from its source.
type Reader struct {
	src    *wire.Reader
	parser parser
	// ready counts bytes that are parsed but still in the source's buffer.
	ready int
	n     int64
	limit int64
	err   error
}

// NewReader returns a Reader of the NAR that starts at src's position. A NAR of
// more than limit bytes is an error, as soon as it is seen to be that large.
func NewReader(src *wire.Reader, limit int64) *Reader { return &Reader{src: src, limit: limit} }

// Copy copies exactly one NAR from src to dst and returns its size in bytes.
//
// If src is a *wire.Reader, no byte behind the NAR is consumed; any other source
// is read ahead of. Errors are those of dst, or a *wire.Error whose offset counts
// from the start of the wire.Reader.
func Copy(dst io.Writer, src io.Reader) (int64, error) {
	r, ok := src.(*wire.Reader)
	if !ok {
		r = wire.NewReader(src)
	}
	return NewReader(r, math.MaxInt64).WriteTo(dst)
}

// Size returns how many bytes of the NAR have been delivered.
func (r *Reader) Size() int64 { return r.n }

// fill makes sure that at least one byte is ready, or as many bytes of a file's
// contents as asked for, if there are as many; io.EOF is the NAR's end.
func (r *Reader) fill(contents int64) error {
	for r.ready == 0 {
		if r.err != nil {
			return r.err
		}
		if r.parser.done() {
			r.err = io.EOF
			return r.err
		}
		b, err := r.src.Window(max(r.parser.need(), int(min(r.parser.content, contents))))
		if err != nil {
			r.err = r.short(err)
			return r.err
		}
		n, err := r.parser.feed(b)
		r.ready = n
		if err == nil && r.parser.content > r.limit-r.n-int64(n) {
			err = fmt.Errorf("it is larger than %d bytes", r.limit)
		}
		if err != nil {
			// What was sound before the fault is withheld. The source is left at
			// the fault, where a peer may have begun to say something else.
			r.src.Skip(n)
			r.ready = 0
			r.err = &wire.Error{Offset: r.src.Offset(), Field: "NAR", Err: &wire.ValueError{Text: err.Error()}}
		}
	}
	return nil
}

// short records that the source ended inside the NAR.
func (r *Reader) short(err error) error {
	if errors.Is(err, io.EOF) {
		return &wire.Error{Offset: r.src.Offset(), Field: "NAR", Err: io.ErrUnexpectedEOF}
	}
	return err
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.ready == 0 && r.err == nil && r.src.Buffered() == 0 && r.parser.content >= int64(len(p)) {
		// File contents need no look: read them past the buffer.
		n, err := r.src.Read(p)
		r.parser.content -= int64(n)
		r.parser.endContents()
		r.n += int64(n)
		if err != nil {
			r.err = r.short(err)
		}
		return n, r.err
	}
	if err := r.fill(1); err != nil {
		return 0, err
	}
	b, err := r.src.Window(1)
	if err != nil {
		return 0, err
	}
	n := copy(p, b[:r.ready])
	r.advance(n)
	return n, nil
}

// WriteTo implements io.WriterTo: bytes go from the source's buffer to dst. Contents
// of large files go in pieces of its size, so that everything behind dst is not woken
// for each piece that arrives.
func (r *Reader) WriteTo(dst io.Writer) (int64, error) {
	start := r.n
	for {
		if err := r.fill(wire.BufferSize); err != nil {
			if err == io.EOF {
				return r.n - start, nil
			}
			return r.n - start, err
		}
		b, err := r.src.Window(1)
		if err != nil {
			return r.n - start, err
		}
		n, err := dst.Write(b[:r.ready])
		r.advance(n)
		if err != nil {
			r.err = err
			return r.n - start, err
		}
	}
}

func (r *Reader) advance(n int) {
	r.src.Skip(n)
	r.ready -= n
	r.n += int64(n)
}
