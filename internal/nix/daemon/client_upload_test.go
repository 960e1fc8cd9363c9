// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

const uploadHead = "\x2c\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x01\x00\x00\x00\x00\x00\x00\x00"

// hearUpload reads an upload's frames to their end and returns the contents.
func hearUpload(p scriptedPeer) (string, error) {
	p.hear(len(uploadHead))
	b, err := io.ReadAll(wire.NewFramedReader(wire.NewReader(p.Conn)))
	return string(b), err
}

func TestUploadBytes(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("large ", 50000)
	got := make(chan string, 1)
	c, _ := connect(t, ClientOptions{}, func(p scriptedPeer) {
		s, _ := hearUpload(p)
		got <- s
		p.say(word(stderrLast))
	})
	if err := c.AddMultipleToStore(t.Context(), files("a", large), nil); err != nil {
		t.Fatal(err)
	}
	info := func(path string, size int) string {
		return str(path) + str("") + str(hashA) + strs() + words(0, uint64(size), 0) + strs() + str("")
	}
	want := word(2) +
		info("/nix/store/00000000000000000000000000000000-f", len(fileNAR("a"))) + fileNAR("a") +
		info("/nix/store/00000000000000000000000000000001-f", len(fileNAR(large))) + fileNAR(large)
	if s := <-got; s != want {
		t.Errorf("upload of %d bytes, want %d", len(s), len(want))
	}
}

// The daemon talks while the upload runs: with unbuffered pipes neither side would
// get on if we did not listen at the same time.
func TestUploadHearsMessages(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, ClientOptions{}, func(p scriptedPeer) {
		p.hear(len(uploadHead))
		r := wire.NewReader(p.Conn)
		f := wire.NewFramedReader(r)
		for {
			if _, err := f.Read(make([]byte, 100)); err != nil {
				break
			}
			p.say(word(stderrNext) + str("got some\n"))
		}
		p.say(word(stderrLast))
	})
	n := 0
	sink := func(Message) error { n++; return nil }
	if err := c.AddMultipleToStore(t.Context(), files(strings.Repeat("x", 100000)), sink); err != nil {
		t.Fatal(err)
	}
	if n < 1000 {
		t.Errorf("%d messages", n)
	}
}

// endless yields an archive that does not end before enough of it was read.
func endless(size uint64) PathSource {
	head := fileNAR("")
	head = head[:len(head)-16-8] + word(size)
	return PathSource{Count: 1000, Next: func() (PathInfo, io.Reader, error) {
		return PathInfo{Path: pathA, NARHash: hashA, NARSize: uint64(len(head)) + size + 16},
			io.MultiReader(strings.NewReader(head), zeros{}), nil
	}}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A refusal in the middle ends the upload early and leaves the connection usable.
func TestUploadRefused(t *testing.T) {
	t.Parallel()
	refusal := word(stderrError) + str("Error") + word(0) + str("Error") + str("no space left") + words(0, 0)
	c, _ := connect(t, ClientOptions{}, func(p scriptedPeer) {
		p.hear(len(uploadHead))
		r := wire.NewReader(p.Conn)
		f := wire.NewFramedReader(r)
		_, _ = io.CopyN(io.Discard, f, 1<<20)
		p.say(refusal)
		if n, err := f.Drain(1 << 40); err != nil || n > 1<<30 {
			t.Errorf("drained %d bytes: %v", n, err)
		}
		if op := r.Uint64("operation"); op != 31 {
			t.Errorf("operation %d behind the upload", op)
		}
		r.Strings("paths", 1, 100)
		r.Bool("substitute")
		p.say(word(stderrLast) + strs(pathB))
	})
	err := c.AddMultipleToStore(t.Context(), endless(1<<50), nil)
	var remote *RemoteError
	if !errors.As(err, &remote) || remote.Message != "no space left" {
		t.Fatalf("error = %v", err)
	}
	paths, err := c.QueryValidPaths(t.Context(), nil, false, nil)
	if err != nil || len(paths) != 1 {
		t.Errorf("the next request: %v, %v", paths, err)
	}
}

func TestUploadFailures(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk failure")
	refusal := word(stderrError) + str("Error") + word(0) + str("Error") + str("no space left") + words(0, 0)
	drain := func(p scriptedPeer) { _, _ = hearUpload(p) }
	one := func(info PathInfo, archive io.Reader, err error) PathSource {
		return PathSource{Count: 1, Next: func() (PathInfo, io.Reader, error) { return info, archive, err }}
	}
	archive := fileNAR("x")
	tests := map[string]struct {
		script func(scriptedPeer)
		source PathSource
		want   string
		is     error
	}{
		"source has no next": {
			script: drain, source: one(PathInfo{}, nil, broken),
			want: "AddMultipleToStore (44): get the next path to send: disk failure", is: broken,
		},
		"archive fails": {
			script: drain, source: one(PathInfo{Path: pathA, NARSize: 100}, iotest.ErrReader(broken), nil),
			want: "read the archive of " + pathA + ": disk failure", is: broken,
		},
		"archive too short": {
			script: drain, source: one(PathInfo{Path: pathA, NARSize: uint64(len(archive)) + 1}, strings.NewReader(archive), nil),
			want: "ends 1 bytes short of its size",
		},
		"archive too long": {
			script: drain, source: one(PathInfo{Path: pathA, NARSize: uint64(len(archive)) - 1}, strings.NewReader(archive), nil),
			want: "larger than its size says",
		},
		"daemon closes": {
			script: func(p scriptedPeer) { p.hear(100); _ = p.Close() }, source: endless(1 << 40),
			want: "unexpected EOF", is: io.ErrUnexpectedEOF,
		},
		"daemon refuses and closes": {
			script: func(p scriptedPeer) { p.hear(100); p.say(refusal); _ = p.Close() }, source: endless(1 << 40),
			want: "AddMultipleToStore (44): no space left",
		},
		"daemon talks nonsense": {
			script: func(p scriptedPeer) { p.hear(100); p.say(word(5)) }, source: endless(1 << 40),
			want: "0x5 is no message",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, conn := connect(t, ClientOptions{}, tc.script)
			err := c.AddMultipleToStore(t.Context(), tc.source, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error = %v, want it to wrap %v", err, tc.is)
			}
			if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the connection is still open: %v", err)
			}
			if err := c.AddMultipleToStore(t.Context(), PathSource{}, nil); !errors.Is(err, ErrClosed) {
				t.Errorf("the next call: %v", err)
			}
		})
	}
}

func TestUploadSizeMayBeUnknown(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, ClientOptions{}, func(p scriptedPeer) {
		_, _ = hearUpload(p)
		p.say(word(stderrLast))
	})
	src := PathSource{Count: 1, Next: func() (PathInfo, io.Reader, error) {
		return PathInfo{Path: pathA, NARHash: hashA}, strings.NewReader(fileNAR("x")), nil
	}}
	if err := c.AddMultipleToStore(t.Context(), src, nil); err != nil {
		t.Error(err)
	}
}

// A daemon whose end takes nothing more, and says nothing either, does not hold
// us for ever once a write has failed.
func TestUploadWriteFailsWithoutAWord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := connect(t, ClientOptions{}, hearAll)
		c.out = newBrokenWriter()
		start := time.Now()
		err := c.AddMultipleToStore(t.Context(), files("x"), nil)
		if err == nil || !strings.Contains(err.Error(), "send the upload: broken pipe") || time.Since(start) != lastWords {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// The sink's failure ends the upload too.
func TestUploadSinkFails(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, ClientOptions{}, func(p scriptedPeer) {
		p.hear(len(uploadHead))
		p.say(word(stderrNext) + str("x"))
	})
	gone := errors.New("client gone")
	err := c.AddMultipleToStore(t.Context(), endless(1<<40), func(Message) error { return gone })
	if !errors.Is(err, gone) {
		t.Errorf("error = %v", err)
	}
}

// TestUploadSmallWrites checks that an upload goes out in large frames although
// it is made of small pieces.
func TestUploadSmallWrites(t *testing.T) {
	t.Parallel()
	var count countingWriter
	u := &upload{frames: wire.NewFramedWriter(&count)}
	var many []string
	for range 1000 {
		many = append(many, "small")
	}
	if err := u.send(files(many...)); err != nil {
		t.Fatal(err)
	}
	if err := u.frames.Close(); err != nil {
		t.Fatal(err)
	}
	if most := count.bytes/wire.BufferSize + 2; count.writes > most {
		t.Errorf("%d writes for %d bytes, want at most %d", count.writes, count.bytes, most)
	}
}

type countingWriter struct{ writes, bytes int }

func (c *countingWriter) Write(p []byte) (int, error) {
	c.writes++
	c.bytes += len(p)
	return len(p), nil
}

func BenchmarkUpload(b *testing.B) {
	const size = 256 << 20
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		u := &upload{frames: wire.NewFramedWriter(io.Discard)}
		src := endless(size)
		src.Count = 1
		next := src.Next
		src.Next = func() (PathInfo, io.Reader, error) {
			info, archive, err := next()
			return info, io.MultiReader(io.LimitReader(archive, int64(info.NARSize)-16), bytes.NewReader([]byte(str(")")))), err
		}
		if err := u.send(src); err != nil {
			b.Fatal(err)
		}
	}
}
