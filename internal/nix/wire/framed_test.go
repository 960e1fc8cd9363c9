// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package wire_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

func TestFramedReader(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		input, want, rest string
		wantErr           string
	}{
		"empty":                {input: word(0) + "rest", rest: "rest"},
		"one frame":            {input: word(3) + "abc" + word(0) + "rest", want: "abc", rest: "rest"},
		"no padding in frames": {input: word(1) + "a" + word(2) + "bc" + word(0), want: "abc"},
		"end of stream in a frame": {
			input: word(5) + "abc", want: "abc", wantErr: "reading frame at byte 11: unexpected EOF",
		},
		"end of stream before a frame": {
			input: word(3) + "abc", want: "abc", wantErr: "reading frame at byte 11: unexpected EOF",
		},
		"length -1": {
			input: word(math.MaxUint64) + "abc", wantErr: "reading frame at byte 0: length 18446744073709551615 exceeds the limit of 4294967295",
		},
	}
	for name, tc := range tests {
		for how, source := range sources {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				r := wire.NewReader(source(strings.NewReader(tc.input)))
				f := wire.NewFramedReader(r)
				got, err := io.ReadAll(f)
				if string(got) != tc.want {
					t.Errorf("contents = %q, want %q", got, tc.want)
				}
				if tc.wantErr != "" {
					if err == nil || err.Error() != tc.wantErr {
						t.Errorf("error = %v, want %q", err, tc.wantErr)
					}
					if f.Done() {
						t.Error("Done after an error")
					}
					return
				}
				if err != nil || !f.Done() {
					t.Errorf("error = %v, done = %t", err, f.Done())
				}
				if n, err := f.Read(make([]byte, 8)); n != 0 || err != io.EOF {
					t.Errorf("Read behind the end = %d, %v", n, err)
				}
				rest, err := io.ReadAll(r)
				if string(rest) != tc.rest || err != nil {
					t.Errorf("rest = %q, %v, want %q", rest, err, tc.rest)
				}
			})
		}
	}
}

func TestFramedReaderDrain(t *testing.T) {
	t.Parallel()
	input := word(3) + "abc" + word(4) + "defg" + word(0) + "rest"
	tests := map[string]struct {
		input   string
		limit   int64
		want    int64
		wantErr string
	}{
		"all":             {input: input, limit: 5, want: 5},
		"too much":        {input: input, limit: 4, want: 5, wantErr: "rest of the upload 5 exceeds the limit of 4"},
		"end of stream":   {input: word(3) + "abc" + word(4) + "d", limit: 100, want: 2, wantErr: "reading frame at byte 20: unexpected EOF"},
		"end in a length": {input: word(3) + "abc" + "\x01", limit: 100, want: 1, wantErr: "reading frame at byte 11: unexpected EOF"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := wire.NewReader(strings.NewReader(tc.input))
			f := wire.NewFramedReader(r)
			if _, err := io.ReadFull(f, make([]byte, 2)); err != nil {
				t.Fatal(err)
			}
			n, err := f.Drain(tc.limit)
			if n != tc.want {
				t.Errorf("drained %d bytes, want %d", n, tc.want)
			}
			if tc.wantErr != "" {
				if err == nil || err.Error() != tc.wantErr {
					t.Errorf("error = %v, want %q", err, tc.wantErr)
				}
				return
			}
			if rest, _ := io.ReadAll(r); err != nil || string(rest) != "rest" {
				t.Errorf("rest = %q, error = %v", rest, err)
			}
		})
	}
}

func TestFramedWriterRoundTrip(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("0123456789abcdef", 3*wire.BufferSize/16) + "tail"
	var b bytes.Buffer
	f := wire.NewFramedWriter(&b)
	if n, err := f.Write([]byte("head")); n != 4 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), word(4)+"head"; got != want {
		t.Errorf("after Flush: %q, want %q", got, want)
	}
	if err := f.Flush(); err != nil || b.Len() != 12 {
		t.Errorf("a second Flush sent something: %d bytes, %v", b.Len(), err)
	}
	if n, err := f.Write([]byte(large)); n != len(large) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if n, err := f.ReadFrom(iotest.HalfReader(strings.NewReader(large))); n != int64(len(large)) || err != nil {
		t.Fatalf("ReadFrom = %d, %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r := wire.NewReader(&b)
	got, err := io.ReadAll(wire.NewFramedReader(r))
	if err != nil || string(got) != "head"+large+large {
		t.Errorf("round trip: %d bytes, %v", len(got), err)
	}
	if err := r.Wait(); err != io.EOF {
		t.Errorf("behind the end: %v", err)
	}
}

func TestFramedWriterErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken pipe")
	r, pipe := io.Pipe()
	_ = r.CloseWithError(broken)
	f := wire.NewFramedWriter(pipe)
	if _, err := f.Write(make([]byte, 3*wire.BufferSize)); !errors.Is(err, broken) {
		t.Errorf("Write = %v", err)
	}
	if _, err := f.ReadFrom(strings.NewReader("x")); !errors.Is(err, broken) {
		t.Errorf("ReadFrom = %v", err)
	}
	if err := f.Close(); !errors.Is(err, broken) {
		t.Errorf("Close = %v", err)
	}

	f = wire.NewFramedWriter(io.Discard)
	if _, err := f.ReadFrom(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("ReadFrom a broken source = %v", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close after a broken source = %v", err)
	}
}
