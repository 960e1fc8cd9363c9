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

	"github.com/google/go-cmp/cmp"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// accept returns a Server whose handshake is done and whose peer goes on with
// script.
func accept(t *testing.T, opts ServerOptions, script func(scriptedPeer)) *Server {
	t.Helper()
	conn := play(t, func(p scriptedPeer) {
		p.say("cxin\x00\x00\x00\x00" + word(0x123))
		p.hear(len(wantHello))
		p.say(words(0, 0))
		p.hear(len(str(opts.DaemonVersion)) + 16)
		script(p)
	})
	s, err := Accept(t.Context(), conn, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

const lastBytes = "stla\x00\x00\x00\x00"

func TestServerRequests(t *testing.T) {
	t.Parallel()
	all := append(HookOperations(), OpBuildPaths, OpQuerySubstitutablePaths)
	settings := words(0, 0, 0, 2, 1, 0, 1, 0, 0, 0, 0, 1) + word(2) + str("cores") + str("4") +
		str("secret-key-files") + str("/etc/nix/key")
	info := &PathInfo{Path: pathA, NARHash: hashA, NARSize: 3}
	tests := map[string]struct {
		request string
		want    Request
		reply   func(*Server) error
		answer  string
	}{
		"SetOptions": {
			request: word(19) + settings,
			want:    &SetOptions{Overrides: 2},
			reply:   (*Server).ReplyDone,
			answer:  lastBytes,
		},
		"QueryValidPaths": {
			request: word(31) + strs(pathA, pathB) + word(1),
			want:    &QueryValidPaths{Paths: []string{pathA, pathB}, Substitute: true},
			reply:   func(s *Server) error { return s.ReplyPaths([]string{pathB}) },
			answer:  lastBytes + strs(pathB),
		},
		"QuerySubstitutablePaths": {
			request: word(32) + strs(pathA),
			want:    &QuerySubstitutablePaths{Paths: []string{pathA}},
			reply:   func(s *Server) error { return s.ReplyPaths(nil) },
			answer:  lastBytes + word(0),
		},
		"BuildPaths": {
			request: words(9, 0, 1),
			want:    &BuildPaths{Mode: BuildRepair},
			reply:   (*Server).ReplyDone,
			answer:  lastBytes + word(1),
		},
		"BuildDerivation": {
			request: word(36) + str(pathDrv) + words(0, 0) + str("x86_64-linux") + str("/bin/sh") + words(0, 0, 0),
			want: &BuildDerivation{
				DrvPath: pathDrv, Derivation: &BasicDerivation{Platform: "x86_64-linux", Builder: "/bin/sh"},
			},
			reply: func(s *Server) error {
				return s.ReplyBuildResult(&BuildResult{Status: statusHashMismatch, ErrorMessage: "hash mismatch"})
			},
			answer: lastBytes + word(5) + str("hash mismatch") + words(0, 0, 0, 0, 0),
		},
		"QueryPathInfo": {
			request: word(26) + str(pathA),
			want:    &QueryPathInfo{Path: pathA},
			reply:   func(s *Server) error { return s.ReplyPathInfo(info, true) },
			answer:  lastBytes + word(1) + str("") + str(hashA) + strs() + words(0, 3, 0) + strs() + str(""),
		},
		"QueryPathInfo of an invalid path": {
			request: word(26) + str(pathA),
			want:    &QueryPathInfo{Path: pathA},
			reply:   func(s *Server) error { return s.ReplyPathInfo(nil, false) },
			answer:  lastBytes + word(0),
		},
		"NARFromPath": {
			request: word(38) + str(pathA),
			want:    &NARFromPath{Path: pathA},
			reply:   func(s *Server) error { return s.ReplyNAR(strings.NewReader(fileNAR("hello"))) },
			answer:  lastBytes + fileNAR("hello"),
		},
		"NARFromPath by reader": {
			request: word(38) + str(pathA),
			want:    &NARFromPath{Path: pathA},
			reply: func(s *Server) error {
				return s.ReplyNAR(iotest.HalfReader(strings.NewReader(fileNAR(strings.Repeat("y", 200000)))))
			},
			answer: lastBytes + fileNAR(strings.Repeat("y", 200000)),
		},
		"refusal": {
			request: word(26) + str(pathA),
			want:    &QueryPathInfo{Path: pathA},
			reply:   func(s *Server) error { return s.Fail(errors.New("no room in the spool")) },
			answer:  word(stderrError) + str("Error") + word(0) + str("Error") + str("no room in the spool") + words(0, 0),
		},
		"refusal of a builder": {
			request: word(26) + str(pathA),
			want:    &QueryPathInfo{Path: pathA},
			reply: func(s *Server) error {
				return s.Fail(&RemoteError{Level: LevelWarn, Message: "no", Traces: []string{"while x"}})
			},
			answer: word(stderrError) + str("Error") + word(1) + str("Error") + str("no") + words(0, 1, 0) + str("while x"),
		},
		"refusal of a builder with words around it": {
			request: word(26) + str(pathA),
			want:    &QueryPathInfo{Path: pathA},
			reply: func(s *Server) error {
				return s.Fail(fmt.Errorf("builder mac-2: %w", &RemoteError{Message: "no", Traces: []string{"while x"}}))
			},
			answer: word(stderrError) + str("Error") + word(0) + str("Error") + str("builder mac-2: no") + words(0, 0),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			line := encoded(t, LogLine(1, "hello").encode)
			s := accept(t, ServerOptions{Operations: all}, func(p scriptedPeer) {
				for range 2 {
					p.say(tc.request)
					expect(t, p, line+tc.answer)
				}
				_ = p.Close()
			})
			for range 2 {
				req, err := s.Next()
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, req); diff != "" {
					t.Errorf("request (-want +got):\n%s", diff)
				}
				if err := s.Send(LogLine(1, "hello")); err != nil {
					t.Errorf("Send: %v", err)
				}
				if err := tc.reply(s); err != nil {
					t.Errorf("reply: %v", err)
				}
				if err := s.Send(LogLine(1, "late")); !errors.Is(err, ErrNoRequest) {
					t.Errorf("Send after the reply: %v", err)
				}
				if err := tc.reply(s); !errors.Is(err, ErrNoRequest) {
					t.Errorf("a second reply: %v", err)
				}
			}
			if req, err := s.Next(); err != io.EOF {
				t.Errorf("at the end: %v, %v", req, err)
			}
		})
	}
}

func TestServerRefusesRequests(t *testing.T) {
	t.Parallel()
	only := "is not offered by this dispatcher: only SetOptions (19), QueryValidPaths (31), AddMultipleToStore (44), " +
		"BuildDerivation (36), QueryPathInfo (26), NarFromPath (38)"
	build := word(36) + str(pathDrv) + words(0, 0, 0, 0, 0, 0)
	type refusal struct {
		request string
		want    string
		op      Operation
	}
	tests := map[string]refusal{
		"garbage collection":     {words(20, 0, 0), "CollectGarbage (20) " + only, 20},
		"unknown operation":      {words(4711), "operation 4711 " + only, 4711},
		"operation 0":            {words(0), "operation 0 " + only, 0},
		"repair mode":            {build + word(1), "BuildDerivation (36) in mode repair (1) is not offered by this dispatcher: only mode normal (0)", 36},
		"check mode":             {build + word(2), "BuildDerivation (36) in mode check (2) is not offered", 36},
		"mode 3":                 {build + word(3), "BuildDerivation (36) in mode 3 is not offered", 36},
		"repairing upload":       {words(44, 1, 1, 0), "AddMultipleToStore (44) with repair is not offered by this dispatcher", 44},
		"no derivation":          {word(36) + str(pathA), `BuildDerivation (36): reading derivation path at byte`, 36},
		"foreign path":           {word(38) + str("/etc/shadow"), `store path "/etc/shadow" is not in the store /nix/store`, 38},
		"path of length -1":      {words(26, 1<<64-1), "length 18446744073709551615 exceeds the limit of 4096", 26},
		"paths without number":   {words(31, 1<<40), "paths count", 31},
		"settings without limit": {word(19) + words(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) + word(1<<40), "setting count", 19},
	}
	// Every other operation of any Nix is refused by name.
	for op, name := range operationNames {
		if !strings.Contains(joinOperations(HookOperations()), name+" (") {
			tests[name] = refusal{word(uint64(op)), fmt.Sprintf("%s (%d) %s", name, uint64(op), only), op}
		}
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			said := make(chan string, 1)
			s := accept(t, ServerOptions{}, func(p scriptedPeer) {
				p.say(tc.request)
				b, _ := io.ReadAll(p.Conn)
				said <- string(b)
			})
			req, err := s.Next()
			var pe *ProtocolError
			if req != nil || !errors.As(err, &pe) || pe.Operation != tc.op || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Next = %v, %v, want an error with %q", req, err, tc.want)
			}
			if err := s.Fail(err); err != nil {
				t.Errorf("Fail: %v", err)
			}
			_ = s.Close()
			if got := <-said; !strings.Contains(got, tc.want) {
				t.Errorf("the client was told %q", got)
			}
		})
	}
}

func TestServerBrokenConnections(t *testing.T) {
	t.Parallel()
	for name, input := range map[string]string{
		"in the operation": "\x1f\x00",
		"in the request":   word(31) + word(1),
		"in the settings":  word(19) + word(0),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := accept(t, ServerOptions{}, func(p scriptedPeer) { p.say(input); _ = p.Close() })
			_, err := s.Next()
			var pe *ProtocolError
			if errors.As(err, &pe) || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("Next = %v", err)
			}
			if _, err := s.Next(); err == nil || err == io.EOF {
				t.Errorf("the next Next = %v", err)
			}
		})
	}
}

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
