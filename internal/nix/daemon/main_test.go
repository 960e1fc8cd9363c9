// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// word is the encoding of a number, written out here so that the tables do not
// rest on the code they test.
func word(v uint64) string { return string(binary.LittleEndian.AppendUint64(nil, v)) }

// words is the encoding of several numbers.
func words(vs ...uint64) string {
	var b strings.Builder
	for _, v := range vs {
		b.WriteString(word(v))
	}
	return b.String()
}

// str is the encoding of a string.
func str(s string) string {
	return word(uint64(len(s))) + s + strings.Repeat("\x00", (8-len(s)%8)%8)
}

// strs is the encoding of a list.
func strs(list ...string) string {
	b := word(uint64(len(list)))
	for _, s := range list {
		b += str(s)
	}
	return b
}

// encoded returns what encode writes.
func encoded(t testing.TB, encode func(*wire.Writer)) string {
	t.Helper()
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	encode(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// decode runs f on input and returns the error that it left.
func decode(input string, f func(*decoder)) error {
	d := newDecoder(strings.NewReader(input), Limits{Paths: 10, Message: 1 << 20, NAR: 1 << 30}, "")
	f(d)
	return d.Err()
}

const (
	pathA   = "/nix/store/00000000000000000000000000000000-a"
	pathB   = "/nix/store/11111111111111111111111111111111-b"
	pathDrv = "/nix/store/22222222222222222222222222222222-c.drv"
	hashA   = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// newBrokenWriter returns a Writer on a connection that the peer has closed.
func newBrokenWriter() *wire.Writer {
	r, w := io.Pipe()
	_ = r.CloseWithError(errors.New("broken pipe"))
	return wire.NewWriter(w)
}
