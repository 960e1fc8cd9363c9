// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// framed puts s into frames of at most size bytes.
func framed(s string, size int) string {
	var b strings.Builder
	for len(s) > 0 {
		n := min(size, len(s))
		b.WriteString(word(uint64(n)) + s[:n])
		s = s[n:]
	}
	return b.String() + word(0)
}

// uploaded is a path of an upload.
func uploaded(path string, size int, archive string) string {
	return str(path) + str("") + str(hashA) + strs() + words(0, uint64(size), 0) + strs() + str("") + archive
}

// nextUpload reads a request that must be an upload.
func nextUpload(t *testing.T, s *Server) *AddMultipleToStore {
	t.Helper()
	req, err := s.Next()
	if err != nil {
		t.Fatal(err)
	}
	up, ok := req.(*AddMultipleToStore)
	if !ok {
		t.Fatalf("request %T", req)
	}
	return up
}

func TestServerUpload(t *testing.T) {
	t.Parallel()
	small, large := fileNAR("small"), fileNAR(strings.Repeat("large ", 12000))
	contents := word(2) + uploaded(pathA, len(small), small) + uploaded(pathB, 0, large)
	type item struct{ Path, Archive string }
	readers := map[string]func(io.Reader) string{
		"Read":     func(r io.Reader) string { b, _ := io.ReadAll(struct{ io.Reader }{r}); return string(b) },
		"WriteTo":  func(r io.Reader) string { var b bytes.Buffer; _, _ = io.Copy(&b, r); return b.String() },
		"in part":  func(r io.Reader) string { b := make([]byte, 50); n, _ := io.ReadFull(r, b); return string(b[:n]) },
		"untaken":  func(io.Reader) string { return "" },
		"part way": func(r io.Reader) string { _, _ = io.CopyN(io.Discard, r, 100); return "" },
	}
	for _, size := range []int{3, 1000, 32 << 10, 1 << 30} {
		for how, read := range readers {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				s := accept(t, ServerOptions{}, func(p scriptedPeer) {
					for range 2 {
						p.say(words(44, 0, 1) + framed(contents, size))
						expect(t, p, lastBytes)
					}
				})
				for range 2 {
					up := nextUpload(t, s)
					if up.Repair || !up.DontCheckSigs {
						t.Errorf("repair %t, ignore signatures %t", up.Repair, up.DontCheckSigs)
					}
					if err := s.ReplyDone(); err == nil || !strings.Contains(err.Error(), "before the upload was read") {
						t.Errorf("reply before the end: %v", err)
					}
					var got []item
					for {
						info, r, err := up.Next()
						if err == io.EOF {
							break
						}
						if err != nil {
							t.Fatal(err)
						}
						got = append(got, item{info.Path, read(r)})
					}
					want := []item{{pathA, read(strings.NewReader(small))}, {pathB, read(strings.NewReader(large))}}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("upload (-want +got):\n%s", diff)
					}
					if _, _, err := up.Next(); err != io.EOF {
						t.Errorf("Next behind the end: %v", err)
					}
					if err := s.ReplyDone(); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// Nix 2.8 to 2.34 upload nothing at all when nothing is missing.
func TestServerUploadOfNothing(t *testing.T) {
	t.Parallel()
	s := accept(t, ServerOptions{}, func(p scriptedPeer) {
		p.say(words(44, 0, 1) + words(8, 0, 0))
		expect(t, p, lastBytes)
	})
	if _, _, err := nextUpload(t, s).Next(); err != io.EOF {
		t.Errorf("Next = %v", err)
	}
	if err := s.ReplyDone(); err != nil {
		t.Error(err)
	}
}

func TestServerUploadBreaksTheProtocol(t *testing.T) {
	t.Parallel()
	small := fileNAR("small")
	tests := map[string]struct {
		frames   string
		want     string
		mismatch bool // the fault shows only at the end of an archive
	}{
		"more than announced":  {framed(word(0)+word(7), 100), "there is more in the upload than it announced", false},
		"less than announced":  {framed(word(1), 100), "the upload ends too early", false},
		"end within a path":    {framed(word(1)+uploaded(pathA, 1, "")[:60], 100), "the upload ends too early", false},
		"end within a NAR":     {framed(word(1)+uploaded(pathA, 0, small[:50]), 100), "the upload ends too early", true},
		"nothing":              {word(0), "the upload ends too early", false},
		"not a NAR":            {framed(word(1)+uploaded(pathA, 0, str("x")), 100), `found "x"`, true},
		"larger than its size": {framed(word(1)+uploaded(pathA, 50, small), 100), "larger than 50 bytes", true},
		"smaller":              {framed(word(1)+uploaded(pathA, len(small)+8, small), 100), "bytes where", true},
		"over the limit":       {framed(word(1)+uploaded(pathA, 1<<20+1, small), 100), "archive size", false},
		"too many paths":       {framed(word(6), 100), "count 6 exceeds the limit of 5", false},
		"foreign path":         {framed(word(1)+str("/etc/passwd"), 100), "is not in the store", false},
		"frame of length -1":   {word(1<<64 - 1), "exceeds the limit of 4294967295", false},
	}
	for name, tc := range tests {
		for how, read := range map[string]func(io.Reader) error{
			"Read":    func(r io.Reader) error { _, err := io.ReadAll(struct{ io.Reader }{r}); return err },
			"WriteTo": func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err },
			"skip":    func(io.Reader) error { return nil },
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				s := accept(t, ServerOptions{Limits: Limits{NAR: 1 << 20, Paths: 5}}, func(p scriptedPeer) {
					p.say(words(44, 0, 1) + tc.frames)
					_, _ = io.Copy(io.Discard, p.Conn)
				})
				up := nextUpload(t, s)
				_, r, err := up.Next()
				if err == nil && tc.mismatch {
					err = read(r)
					_, _, next := up.Next()
					if how == "skip" {
						err = next
					} else if next == nil || next == io.EOF {
						t.Errorf("Next after a broken archive = %v", next)
					}
				}
				var pe *ProtocolError
				if !errors.As(err, &pe) || pe.Operation != 44 || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error = %v, want one with %q", err, tc.want)
				}
				if _, _, again := up.Next(); again == nil || again == io.EOF {
					t.Errorf("Next after an error = %v", again)
				}
			})
		}
	}
}

func TestServerUploadConnectionBreaks(t *testing.T) {
	t.Parallel()
	s := accept(t, ServerOptions{}, func(p scriptedPeer) {
		p.say(words(44, 0, 1) + word(1000) + word(1))
		_ = p.Close()
	})
	_, _, err := nextUpload(t, s).Next()
	var pe *ProtocolError
	if errors.As(err, &pe) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error = %v", err)
	}
	if err := s.Fail(errors.New("x")); err == nil {
		t.Error("Fail on a broken connection returned nil")
	}
}

// Whoever takes the upload may stop at any point: the client is told, the rest is
// thrown away, and the next request is understood.
func TestServerRefusesAnUploadHalfway(t *testing.T) {
	t.Parallel()
	large := fileNAR(strings.Repeat("large ", 50000))
	frames := framed(word(2)+uploaded(pathA, len(large), large)+uploaded(pathB, len(large), large), 30000)
	refusal := word(stderrError) + str("Error") + word(0) + str("Error") + str("spool is full") + words(0, 0)
	full := errors.New("spool is full")
	tests := map[string]func(*AddMultipleToStore){
		"at once":              func(*AddMultipleToStore) {},
		"in front of a NAR":    func(up *AddMultipleToStore) { _, _, _ = up.Next() },
		"within a NAR":         func(up *AddMultipleToStore) { _, r, _ := up.Next(); _, _ = io.CopyN(io.Discard, r, 100000) },
		"at a failing write":   func(up *AddMultipleToStore) { _, r, _ := up.Next(); _, _ = io.Copy(failing{full}, r) },
		"in front of the next": func(up *AddMultipleToStore) { _, _, _ = up.Next(); _, _, _ = up.Next() },
		"behind the last":      func(up *AddMultipleToStore) { _, _, _ = up.Next(); _, _, _ = up.Next(); _, _, _ = up.Next() },
		"behind the last twice": func(up *AddMultipleToStore) {
			for range 4 {
				_, _, _ = up.Next()
			}
		},
	}
	for name, stop := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := accept(t, ServerOptions{}, func(p scriptedPeer) {
				// As a Nix client does, listen while sending.
				heard := make(chan struct{})
				go func() { expect(t, p, refusal); close(heard) }()
				p.say(words(44, 0, 1) + frames + word(26) + str(pathA))
				<-heard
				expect(t, p, lastBytes+word(0))
			})
			up := nextUpload(t, s)
			stop(up)
			if err := s.Fail(full); err != nil {
				t.Fatal(err)
			}
			if _, _, err := up.Next(); err == nil {
				t.Error("Next after Fail yields a path")
			}
			if req, err := s.Next(); err != nil || req.Operation() != OpQueryPathInfo {
				t.Fatalf("the next request: %v, %v", req, err)
			}
			if err := s.ReplyPathInfo(nil, false); err != nil {
				t.Error(err)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestServerDrainsOnlySoMuch(t *testing.T) {
	t.Parallel()
	s := accept(t, ServerOptions{Limits: Limits{Drain: 1000}}, func(p scriptedPeer) {
		go hearAll(p)
		p.say(words(44, 0, 1))
		for range 100 {
			p.say(word(1000) + strings.Repeat("x", 1000))
		}
	})
	nextUpload(t, s)
	err := s.Fail(errors.New("no"))
	if err == nil || !strings.Contains(err.Error(), "exceeds the limit of 1000") {
		t.Errorf("Fail = %v", err)
	}
}

// Messages go out while the upload comes in.
func TestServerSendsDuringAnUpload(t *testing.T) {
	t.Parallel()
	archive := fileNAR(strings.Repeat("x", 1<<20))
	s := accept(t, ServerOptions{}, func(p scriptedPeer) {
		sent := make(chan struct{})
		go func() {
			p.say(words(44, 0, 1) + framed(word(1)+uploaded(pathA, len(archive), archive), 1000))
			close(sent)
		}()
		d := newDecoder(p.Conn, Limits{}, "")
		n := 0
		if err := d.messages(func(Message) error { n++; return nil }); err != nil || n != 500 {
			t.Errorf("%d messages, %v", n, err)
		}
		<-sent
	})
	up := nextUpload(t, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 500 {
			if err := s.Send(Next{Text: "still receiving\n"}); err != nil {
				t.Error(err)
			}
		}
	}()
	for {
		_, r, err := up.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
	}
	<-done
	if err := s.ReplyDone(); err != nil {
		t.Error(err)
	}
}

func BenchmarkServerUpload(b *testing.B) {
	const size = 256 << 20
	var head bytes.Buffer
	w := wire.NewWriter(&head)
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		w.String(s)
	}
	w.Uint64(size)
	_ = w.Flush()
	info := word(1) + uploaded(pathA, 0, head.String())
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		r, p := io.Pipe()
		go func() {
			f := wire.NewFramedWriter(p)
			_, _ = io.WriteString(f, info)
			_, _ = io.CopyN(f, zeros{}, size)
			_, _ = io.WriteString(f, str(")"))
			_ = f.Close()
		}()
		d := newDecoder(io.MultiReader(strings.NewReader(words(0, 1)), r), Limits{}, "")
		up := d.upload()
		_, archive, err := up.Next()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, archive); err != nil {
			b.Fatal(err)
		}
		if _, _, err := up.Next(); err != io.EOF {
			b.Fatal(err)
		}
	}
}
