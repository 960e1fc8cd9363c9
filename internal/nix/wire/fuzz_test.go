// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package wire_test

import (
	"bytes"
	"io"
	"math"
	"testing"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// FuzzStrings checks that whatever Strings accepts is what Writer would have
// written, and that it never hands out more than there is.
func FuzzStrings(f *testing.F) {
	f.Add([]byte(word(2) + word(3) + "out\x00\x00\x00\x00\x00" + word(0)))
	f.Add([]byte(word(math.MaxUint64)))
	f.Add([]byte(word(1) + word(math.MaxUint64-1)))
	f.Add([]byte(word(1<<20) + word(0)))
	f.Add([]byte(word(1) + word(1) + "a\x00\x00\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := wire.NewReader(bytes.NewReader(data))
		r.SetBudget(1 << 20)
		list := r.Strings("strings", 1<<16, 1<<20)
		if r.Err() != nil {
			if list != nil {
				t.Error("a list in spite of an error")
			}
			return
		}
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		w.Strings(list)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got, want := b.Bytes(), data[:r.Offset()]; !bytes.Equal(got, want) {
			t.Errorf("encoded again: %q, want %q", got, want)
		}
	})
}

// FuzzFramed checks that a framed stream is read to the same contents whether it
// is copied or drained, and that the bytes behind it stay.
func FuzzFramed(f *testing.F) {
	f.Add([]byte(word(3) + "abc" + word(0) + "rest"))
	f.Add([]byte(word(0)))
	f.Add([]byte(word(math.MaxUint64)))
	f.Add([]byte(word(math.MaxUint32) + "x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := wire.NewReader(bytes.NewReader(data))
		n, err := io.Copy(io.Discard, wire.NewFramedReader(r))
		r2 := wire.NewReader(bytes.NewReader(data))
		n2, err2 := wire.NewFramedReader(r2).Drain(math.MaxInt64)
		if n != n2 || (err == nil) != (err2 == nil) || r.Offset() != r2.Offset() {
			t.Errorf("copied %d bytes up to %d (%v), drained %d up to %d (%v)", n, r.Offset(), err, n2, r2.Offset(), err2)
		}
	})
}
