// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// word is the encoding of one number.
func word(v uint64) string {
	return string(binary.LittleEndian.AppendUint64(nil, v))
}

// sources are the ways in which bytes may arrive.
var sources = map[string]func(io.Reader) io.Reader{
	"at once":        func(r io.Reader) io.Reader { return r },
	"byte by byte":   iotest.OneByteReader,
	"half by half":   iotest.HalfReader,
	"end with bytes": iotest.DataErrReader,
}

func TestReaderValues(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		input string
		read  func(*wire.Reader) any
		want  any
	}{
		"number": {
			input: "\x23\x01\x00\x00\x00\x00\x00\x00",
			read:  func(r *wire.Reader) any { return r.Uint64("n") },
			want:  uint64(0x123),
		},
		"largest number": {
			input: "\xff\xff\xff\xff\xff\xff\xff\xff",
			read:  func(r *wire.Reader) any { return r.Uint64("n") },
			want:  uint64(math.MaxUint64),
		},
		"true":  {input: word(1), read: func(r *wire.Reader) any { return r.Bool("b") }, want: true},
		"false": {input: word(0), read: func(r *wire.Reader) any { return r.Bool("b") }, want: false},
		"empty string": {
			input: word(0),
			read:  func(r *wire.Reader) any { return r.String("s", 10) },
			want:  "",
		},
		"string with padding": {
			input: "\x03\x00\x00\x00\x00\x00\x00\x00out\x00\x00\x00\x00\x00",
			read:  func(r *wire.Reader) any { return r.String("s", 3) },
			want:  "out",
		},
		"string of whole words": {
			input: "\x08\x00\x00\x00\x00\x00\x00\x00contents",
			read:  func(r *wire.Reader) any { return r.String("s", 8) },
			want:  "contents",
		},
		"string larger than the buffer": {
			input: word(3*wire.BufferSize+1) + strings.Repeat("x", 3*wire.BufferSize+1) + strings.Repeat("\x00", 7),
			read:  func(r *wire.Reader) any { return r.String("s", math.MaxInt32) },
			want:  strings.Repeat("x", 3*wire.BufferSize+1),
		},
		"strings": {
			input: word(2) + word(1) + "a\x00\x00\x00\x00\x00\x00\x00" + word(0),
			read:  func(r *wire.Reader) any { return r.Strings("s", 2, 1) },
			want:  []string{"a", ""},
		},
		"no strings": {
			input: word(0),
			read:  func(r *wire.Reader) any { return r.Strings("s", 2, 1) },
			want:  []string(nil),
		},
		"skipped string": {
			input: word(5) + "12345\x00\x00\x00" + word(7),
			read:  func(r *wire.Reader) any { r.SkipString("s", 5); return r.Uint64("n") },
			want:  uint64(7),
		},
	}
	for name, tc := range tests {
		for how, source := range sources {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				r := wire.NewReader(source(strings.NewReader(tc.input)))
				got := tc.read(r)
				if err := r.Err(); err != nil {
					t.Fatalf("read: %v", err)
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("value (-want +got):\n%s", diff)
				}
				if got, want := r.Offset(), int64(len(tc.input)); got != want {
					t.Errorf("offset = %d, want %d", got, want)
				}
				if err := r.Wait(); err != io.EOF {
					t.Errorf("Wait at the end = %v, want io.EOF", err)
				}
			})
		}
	}
}

// readError is a way to read that must fail.
type readError struct {
	input         string
	read          func(*wire.Reader)
	wantOffset    int64
	wantText      string
	wantMalformed bool
}

func TestReaderErrors(t *testing.T) {
	t.Parallel()
	testReadErrors(t, map[string]readError{
		"number cut short": {
			input:    word(0) + "\x01\x02\x03",
			read:     func(r *wire.Reader) { r.Uint64("first"); r.Uint64("second") },
			wantText: "reading second at byte 8: unexpected EOF", wantOffset: 8,
		},
		"nothing": {
			read:     func(r *wire.Reader) { r.Uint64("first") },
			wantText: "reading first at byte 0: unexpected EOF",
		},
		"boolean that is none": {
			input:    word(2),
			read:     func(r *wire.Reader) { r.Bool("valid") },
			wantText: "reading valid at byte 0: 2 is not a boolean", wantMalformed: true,
		},
		"enumeration too large": {
			input:    word(4),
			read:     func(r *wire.Reader) { r.Enum("trust", 3) },
			wantText: "reading trust at byte 0: value 4 exceeds the limit of 3", wantMalformed: true,
		},
		"padding not zero": {
			input:    word(3) + "abc\x00\x00\x01\x00\x00",
			read:     func(r *wire.Reader) { r.String("name", 8) },
			wantText: "reading name at byte 11: padding is not zero", wantOffset: 11, wantMalformed: true,
		},
		"padding missing": {
			input:    word(3) + "abc\x00",
			read:     func(r *wire.Reader) { r.String("name", 8) },
			wantText: "reading name at byte 11: unexpected EOF", wantOffset: 11,
		},
		"failure of the decoder": {
			input:    word(7),
			read:     func(r *wire.Reader) { r.Uint64("mode"); r.Fail("mode", "%d is no mode", 7) },
			wantText: "reading mode at byte 8: 7 is no mode", wantOffset: 8, wantMalformed: true,
		},
		"the first error stays": {
			input:    word(2),
			read:     func(r *wire.Reader) { r.Bool("first"); r.Uint64("second"); r.Fail("third", "no") },
			wantText: "reading first at byte 0: 2 is not a boolean", wantMalformed: true,
		},
	})
}

func TestReaderLimits(t *testing.T) {
	t.Parallel()
	testReadErrors(t, map[string]readError{
		"string too long": {
			input:    word(9) + strings.Repeat("x", 16),
			read:     func(r *wire.Reader) { r.String("name", 8) },
			wantText: "reading name at byte 0: length 9 exceeds the limit of 8", wantMalformed: true,
		},
		"length -1": {
			input:    word(math.MaxUint64),
			read:     func(r *wire.Reader) { r.String("name", math.MaxInt) },
			wantText: "reading name at byte 0: length 18446744073709551615 exceeds the limit of 9223372036854775807", wantMalformed: true,
		},
		"length -2": {
			input:    word(math.MaxUint64 - 1),
			read:     func(r *wire.Reader) { r.SkipString("name", 100) },
			wantText: "reading name at byte 0: length 18446744073709551614 exceeds the limit of 100", wantMalformed: true,
		},
		"huge string that does not come": {
			input:    word(1<<40) + "xyz",
			read:     func(r *wire.Reader) { r.String("name", 1<<40) },
			wantText: "reading name at byte 0: unexpected EOF",
		},
		"count too large": {
			input:    word(3),
			read:     func(r *wire.Reader) { r.Strings("paths", 2, 10) },
			wantText: "reading paths count at byte 0: count 3 exceeds the limit of 2", wantMalformed: true,
		},
		"huge count that does not come": {
			input:    word(1 << 50),
			read:     func(r *wire.Reader) { r.Strings("paths", 1<<60, 10) },
			wantText: "reading paths at byte 8: unexpected EOF", wantOffset: 8,
		},
		"budget spent on strings": {
			input:    word(4) + "abcd\x00\x00\x00\x00" + word(4) + "abcd\x00\x00\x00\x00",
			read:     func(r *wire.Reader) { r.SetBudget(7); r.String("a", 8); r.String("b", 8) },
			wantText: "reading b at byte 16: the message exceeds its size limit", wantOffset: 16, wantMalformed: true,
		},
		"budget spent on list elements": {
			input:    word(1000) + strings.Repeat(word(0), 1000),
			read:     func(r *wire.Reader) { r.SetBudget(100); r.Strings("paths", 1000, 8) },
			wantText: "reading paths at byte 32: the message exceeds its size limit", wantOffset: 32, wantMalformed: true,
		},
	})
}

func testReadErrors(t *testing.T, tests map[string]readError) {
	t.Helper()
	for name, tc := range tests {
		for how, source := range sources {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				r := wire.NewReader(source(strings.NewReader(tc.input)))
				tc.read(r)
				err := r.Err()
				var we *wire.Error
				if !errors.As(err, &we) {
					t.Fatalf("error = %v, want a *wire.Error", err)
				}
				if err.Error() != tc.wantText {
					t.Errorf("error = %q, want %q", err, tc.wantText)
				}
				if we.Offset != tc.wantOffset {
					t.Errorf("offset = %d, want %d", we.Offset, tc.wantOffset)
				}
				if got := errors.Is(err, wire.ErrMalformed); got != tc.wantMalformed {
					t.Errorf("matches ErrMalformed = %t, want %t", got, tc.wantMalformed)
				}
				if got := errors.Is(err, io.ErrUnexpectedEOF); got == tc.wantMalformed {
					t.Errorf("matches io.ErrUnexpectedEOF = %t, want %t", got, !tc.wantMalformed)
				}
			})
		}
	}
}

func TestReaderConnectionError(t *testing.T) {
	t.Parallel()
	broken := errors.New("connection reset")
	r := wire.NewReader(io.MultiReader(strings.NewReader(word(1)+"ab"), iotest.ErrReader(broken)))
	if err := r.Wait(); err != nil {
		t.Fatalf("Wait = %v", err)
	}
	r.Uint64("first")
	r.Uint64("second")
	if err := r.Err(); !errors.Is(err, broken) || errors.Is(err, wire.ErrMalformed) {
		t.Errorf("error = %v, want the connection's", err)
	}
	if err := r.Wait(); !errors.Is(err, broken) {
		t.Errorf("Wait = %v, want the connection's error", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, broken) {
		t.Errorf("Read = %v, want the connection's error", err)
	}
	if _, err := r.Window(1); !errors.Is(err, broken) {
		t.Errorf("Window = %v, want the connection's error", err)
	}

	r = wire.NewReader(iotest.ErrReader(broken))
	if err := r.Wait(); !errors.Is(err, broken) || !errors.Is(r.Err(), broken) {
		t.Errorf("Wait = %v and Err = %v, want the connection's error", err, r.Err())
	}
	r = wire.NewReader(iotest.ErrReader(broken))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, broken) || !errors.Is(r.Err(), broken) {
		t.Errorf("Read = %v and Err = %v, want the connection's error", err, r.Err())
	}
}

func TestReaderWindow(t *testing.T) {
	t.Parallel()
	r := wire.NewReader(iotest.OneByteReader(strings.NewReader("abcdef")))
	b, err := r.Window(4)
	if err != nil || string(b) != "abcd" {
		t.Fatalf("Window(4) = %q, %v", b, err)
	}
	r.Skip(3)
	if r.Buffered() != 1 || r.Offset() != 3 {
		t.Errorf("after Skip: buffered %d, offset %d, want 1 and 3", r.Buffered(), r.Offset())
	}
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "def" {
		t.Errorf("ReadAll = %q, %v", got, err)
	}
	if _, err := r.Window(1); err != io.EOF {
		t.Errorf("Window at the end = %v, want io.EOF", err)
	}

	r = wire.NewReader(strings.NewReader("ab"))
	b, err = r.Window(3)
	if !errors.Is(err, io.ErrUnexpectedEOF) || string(b) != "ab" {
		t.Errorf("Window(3) of two bytes = %q, %v", b, err)
	}
}

func TestWriterRoundTrip(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.Uint64(0x123)
	w.Bool(true)
	w.Bool(false)
	w.String("")
	w.String("out")
	w.String("contents")
	w.Strings([]string{"a", "bc"})
	w.Strings(nil)
	if _, err := w.Write([]byte("raw")); err != nil {
		t.Fatal(err)
	}
	if n, err := w.ReadFrom(strings.NewReader("bytes")); n != 5 || err != nil {
		t.Fatalf("ReadFrom = %d, %v", n, err)
	}
	if b.Len() != 0 {
		t.Error("bytes were sent before Flush")
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	want := "\x23\x01\x00\x00\x00\x00\x00\x00" + word(1) + word(0) + word(0) +
		word(3) + "out\x00\x00\x00\x00\x00" + word(8) + "contents" +
		word(2) + word(1) + "a\x00\x00\x00\x00\x00\x00\x00" + word(2) + "bc\x00\x00\x00\x00\x00\x00" +
		word(0) + "rawbytes"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("encoding (-want +got):\n%s", diff)
	}
}

func TestWriterKeepsTheFirstError(t *testing.T) {
	t.Parallel()
	r, pipe := io.Pipe()
	broken := errors.New("broken pipe")
	_ = r.CloseWithError(broken)
	w := wire.NewWriter(pipe)
	w.String(strings.Repeat("x", 2*wire.BufferSize))
	w.Uint64(1)
	for range 2 {
		if err := w.Flush(); !errors.Is(err, broken) {
			t.Errorf("Flush = %v, want %v", err, broken)
		}
	}
}
