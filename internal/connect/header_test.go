// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package connect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

var sample = Header{
	Target:    Target{Class: "x86_64-linux", Slot: 258},
	Namespace: 4026531836,
	Hook:      Process{PID: 4242, StartTime: 1 << 40},
	Client:    Process{PID: 17, StartTime: 99},
}

// sampleBytes is written out by hand: the layout may not change by accident,
// since helper and dispatcher can come from two builds.
var sampleBytes = []byte("nxbC\x01\x00\x2f\x00" +
	"\xfc\xff\xff\xef\x00\x00\x00\x00" +
	"\x92\x10\x00\x00" + "\x00\x00\x00\x00\x00\x01\x00\x00" +
	"\x11\x00\x00\x00" + "\x63\x00\x00\x00\x00\x00\x00\x00" +
	"\x02\x01" + "\x0cx86_64-linux")

func TestHeaderLayout(t *testing.T) {
	t.Parallel()
	got, err := sample.Append([]byte("before"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("before"+string(sampleBytes), string(got)); diff != "" {
		t.Errorf("encoding (-want +got):\n%s", diff)
	}
}

func TestInquiry(t *testing.T) {
	t.Parallel()
	inquiry := sample
	inquiry.Inquiry = true
	got, err := inquiry.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(sampleBytes)
	want[5] = 1
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("encoding (-want +got):\n%s", diff)
	}
	back, err := Decode(bytes.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(inquiry, back); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
}

func TestDecodeLeavesTheStreamAlone(t *testing.T) {
	t.Parallel()
	tests := map[string]func(io.Reader) io.Reader{
		"whole":      func(r io.Reader) io.Reader { return r },
		"byte-wise":  iotest.OneByteReader,
		"early EOF":  iotest.DataErrReader,
		"half reads": iotest.HalfReader,
	}
	for name, wrap := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := wrap(bytes.NewReader(append(bytes.Clone(sampleBytes), "nixc rest"...)))
			got, err := Decode(r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(sample, got); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			rest, err := io.ReadAll(r)
			if err != nil || string(rest) != "nixc rest" {
				t.Errorf("what follows = %q, %v, want it untouched", rest, err)
			}
		})
	}
}

func TestDecodeSkipsLaterFields(t *testing.T) {
	t.Parallel()
	longer := append(bytes.Clone(sampleBytes), "later"...)
	binary.LittleEndian.PutUint16(longer[6:], uint16(len(longer)-8))
	r := bytes.NewReader(append(longer, '!'))
	got, err := Decode(r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample, got); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	if r.Len() != 1 {
		t.Errorf("%d bytes left, want 1", r.Len())
	}
}

func TestDecodeTruncated(t *testing.T) {
	t.Parallel()
	for n := range sampleBytes {
		_, err := Decode(bytes.NewReader(sampleBytes[:n]))
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if !errors.Is(err, want) {
			t.Errorf("after %d bytes: error %v, want %v", n, err, want)
		}
	}
}

func TestDecodePassesReadErrorsOn(t *testing.T) {
	t.Parallel()
	late := errors.New("deadline passed")
	_, err := Decode(io.MultiReader(bytes.NewReader(sampleBytes[:20]), iotest.ErrReader(late)))
	if !errors.Is(err, late) || !strings.Contains(err.Error(), "read body") {
		t.Errorf("error = %v, want %v from the body", err, late)
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	patch := func(offset int, with ...byte) []byte {
		out := bytes.Clone(sampleBytes)
		copy(out[offset:], with)
		return out
	}
	tests := map[string]struct {
		in   []byte
		want string
	}{
		"another program":  {in: []byte("GET / HTTP/1.1\r\n\r\n"), want: `it begins with "GET "`},
		"Nix itself":       {in: []byte("cxin\x00\x00\x00\x00"), want: "something other than nix-dispatch-connect"},
		"body too short":   {in: patch(6, fixedBody-1, 0), want: "a body of 34 bytes"},
		"body too long":    {in: patch(6, 0xff, 0xff), want: "a body of 65535 bytes"},
		"class past body":  {in: patch(42, 200), want: "the class has 200 bytes but only 12"},
		"no class":         {in: patch(42, 0), want: "the class is empty"},
		"class with blank": {in: patch(43, ' '), want: "a byte other than"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Decode(bytes.NewReader(tc.in))
			var format *FormatError
			if !errors.As(err, &format) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want a FormatError with %q", err, tc.want)
			}
		})
	}
	t.Run("another version", func(t *testing.T) {
		t.Parallel()
		_, err := Decode(bytes.NewReader(patch(4, 2)))
		var version *VersionError
		if !errors.As(err, &version) || version.Got != 2 {
			t.Errorf("error = %v, want a *VersionError with 2", err)
		}
	})
}

func TestAppendRefuses(t *testing.T) {
	t.Parallel()
	got, err := Header{Target: Target{Class: "c d"}}.Append([]byte("kept"))
	if err == nil || string(got) != "kept" {
		t.Errorf("Append = %q, %v, want the slice as it was and an error", got, err)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	other := sample
	other.Namespace++
	if sample.HookKey() == other.HookKey() || sample.ClientKey() == other.ClientKey() {
		t.Error("processes of two pid namespaces have the same key")
	}
	reused := sample
	reused.Hook.StartTime++
	if sample.HookKey() == reused.HookKey() {
		t.Error("a process id used again has the same key")
	}
	if sample.ClientKey() != reused.ClientKey() {
		t.Error("two hooks of one client have different client keys")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(sampleBytes)
	f.Add(append(bytes.Clone(sampleBytes), "nixc"...))
	f.Add([]byte("nxbC\x01\x00\xff\xff"))
	f.Add([]byte("nxbC\x02\x00\x00\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		h, err := Decode(r)
		if err != nil {
			return
		}
		used := len(in) - r.Len()
		again, err := h.Append(nil)
		if err != nil {
			t.Fatalf("decoded %+v cannot be encoded: %v", h, err)
		}
		if len(again) > used {
			t.Errorf("encoding has %d bytes, decoding took %d", len(again), used)
		}
		back, err := Decode(bytes.NewReader(again))
		if err != nil || back != h {
			t.Errorf("round trip of %+v = %+v, %v", h, back, err)
		}
	})
}
