// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// Log lines come from many goroutines, also while the reply goes out: each is
// whole, and none behind the reply.
func TestServerSendsConcurrently(t *testing.T) {
	t.Parallel()
	answer := make(chan string, 1)
	s := accept(t, ServerOptions{}, func(p scriptedPeer) {
		p.say(word(38) + str(pathA))
		b, _ := io.ReadAll(p.Conn)
		answer <- string(b)
	})
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	started := make(chan struct{}, 8)
	for i := range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				if err := s.Send(LogLine(uint64(i), strings.Repeat("x", n%100))); errors.Is(err, ErrNoRequest) {
					return
				}
				if n == 10 {
					started <- struct{}{}
				}
			}
		})
	}
	for range 8 {
		<-started
	}
	archive := fileNAR(strings.Repeat("z", 500000))
	if err := s.ReplyNAR(strings.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	_ = s.Close()
	d := newDecoder(strings.NewReader(<-answer), Limits{}, "")
	if err := d.messages(nil); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(d)
	if string(rest) != archive {
		t.Errorf("%d bytes behind the messages, want the archive's %d", len(rest), len(archive))
	}
}

func TestServerKeepsOrder(t *testing.T) {
	t.Parallel()
	s := accept(t, ServerOptions{}, func(p scriptedPeer) {
		p.say(word(26) + str(pathA))
		_, _ = io.Copy(io.Discard, p.Conn)
	})
	for name, f := range map[string]func() error{
		"Send":             func() error { return s.Send(Next{Text: "early"}) },
		"Fail":             func() error { return s.Fail(errors.New("early")) },
		"ReplyDone":        s.ReplyDone,
		"ReplyPaths":       func() error { return s.ReplyPaths(nil) },
		"ReplyPathInfo":    func() error { return s.ReplyPathInfo(nil, false) },
		"ReplyBuildResult": func() error { return s.ReplyBuildResult(&BuildResult{}) },
		"ReplyNAR":         func() error { return s.ReplyNAR(strings.NewReader("x")) },
	} {
		if err := f(); !errors.Is(err, ErrNoRequest) {
			t.Errorf("%s before a request: %v", name, err)
		}
	}
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"ReplyDone":        s.ReplyDone,
		"ReplyPaths":       func() error { return s.ReplyPaths(nil) },
		"ReplyBuildResult": func() error { return s.ReplyBuildResult(&BuildResult{}) },
		"ReplyNAR":         func() error { return s.ReplyNAR(strings.NewReader("x")) },
		"Next":             func() error { _, err := s.Next(); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), "QueryPathInfo (26)") {
			t.Errorf("%s in answer to QueryPathInfo: %v", name, err)
		}
	}
	if err := s.ReplyPathInfo(nil, false); err != nil {
		t.Errorf("the right answer: %v", err)
	}
}

// Until the first byte of an archive is there, the client can be told why none
// comes.
func TestServerArchiveFails(t *testing.T) {
	t.Parallel()
	gone := errors.New("builder lost")
	tests := map[string]struct {
		reply    func(*Server) error
		want     error
		wantOpen bool
	}{
		"before the first byte": {func(s *Server) error { return s.ReplyNAR(iotest.ErrReader(gone)) }, gone, true},
		"nothing written":       {func(s *Server) error { return s.StreamNAR(func(io.Writer) error { return gone }) }, gone, true},
		"empty":                 {func(s *Server) error { return s.ReplyNAR(strings.NewReader("")) }, nil, true},
		"behind the first byte": {func(s *Server) error {
			return s.ReplyNAR(io.MultiReader(strings.NewReader("x"), iotest.ErrReader(gone)))
		}, gone, false},
		"behind the first write": {func(s *Server) error {
			return s.StreamNAR(func(w io.Writer) error { _, _ = w.Write([]byte("x")); return gone })
		}, gone, false},
		"with the first bytes":      {func(s *Server) error { return s.ReplyNAR(&withBytes{err: gone}) }, gone, false},
		"from a writer to a writer": {func(s *Server) error { return s.ReplyNAR(onlyWriteTo{gone}) }, gone, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := accept(t, ServerOptions{}, func(p scriptedPeer) {
				p.say(word(38) + str(pathA))
				_, _ = io.Copy(io.Discard, p.Conn)
			})
			if _, err := s.Next(); err != nil {
				t.Fatal(err)
			}
			err := tc.reply(s)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error = %v", err)
			}
			err = s.Fail(errors.New("builder lost"))
			if tc.wantOpen && err != nil || !tc.wantOpen && !errors.Is(err, ErrNoRequest) {
				t.Errorf("Fail = %v", err)
			}
		})
	}
}

// withBytes returns an error together with the first bytes.
type withBytes struct{ err error }

func (w *withBytes) Read(p []byte) (int, error) { return copy(p, "x"), w.err }

// onlyWriteTo is a source that writes itself and fails behind the first byte.
type onlyWriteTo struct{ err error }

func (onlyWriteTo) Read([]byte) (int, error) { return 0, errors.New("WriteTo must be used") }

func (o onlyWriteTo) WriteTo(w io.Writer) (int64, error) {
	n, _ := w.Write([]byte("x"))
	return int64(n), o.err
}

// TestServerSettingsAreNotKept makes sure that nothing of a client's settings
// stays in the request, not even in an error.
func TestServerSettingsAreNotKept(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	head := word(19) + words(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	for name, request := range map[string]string{
		"whole":       head + word(1) + str("access-tokens") + str(secret),
		"bad padding": head + word(1) + str("access-tokens") + word(uint64(len(secret))) + secret + "\x01",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := accept(t, ServerOptions{}, func(p scriptedPeer) { p.say(request); _ = p.Close() })
			req, err := s.Next()
			if text := fmt.Sprintf("%#v %v", req, err); strings.Contains(text, secret) || strings.Contains(text, "tokens") {
				t.Errorf("settings show: %s", text)
			}
		})
	}
}

func BenchmarkReplyNAR(b *testing.B) {
	const size = 256 << 20
	b.SetBytes(size)
	b.ReportAllocs()
	s := &Server{out: wire.NewWriter(io.Discard), in: newDecoder(bytes.NewReader(nil), Limits{}, "")}
	for b.Loop() {
		s.waiting, s.open = true, OpNARFromPath
		if err := s.ReplyNAR(io.LimitReader(zeros{}, size)); err != nil {
			b.Fatal(err)
		}
	}
}
