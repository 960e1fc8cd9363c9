// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
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

// served is a request and its answer.
type served struct {
	request string
	want    Request
	reply   func(*Server) error
	answer  string
}

func TestServerRequests(t *testing.T) {
	t.Parallel()
	settings := words(0, 0, 0, 2, 1, 0, 1, 0, 0, 0, 0, 1) + word(2) + str("cores") + str("4") +
		str("secret-key-files") + str("/etc/nix/key")
	info := &PathInfo{Path: pathA, NARHash: hashA, NARSize: 3}
	testServed(t, map[string]served{
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
		"AddTempRoot": {
			request: word(11) + str(pathA),
			want:    &AddTempRoot{Path: pathA},
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
	})
}

func TestServerFail(t *testing.T) {
	t.Parallel()
	testServed(t, map[string]served{
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
	})
}

// testServed lets each request be answered twice on one connection.
func testServed(t *testing.T, tests map[string]served) {
	t.Helper()
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			line := encoded(t, LogLine(1, "hello").encode)
			s := accept(t, ServerOptions{Operations: append(HookOperations(), OpBuildPaths, OpQuerySubstitutablePaths, OpAddTempRoot)}, func(p scriptedPeer) {
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
	type refused struct {
		request string
		want    string
		op      Operation
	}
	tests := map[string]refused{
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
			tests[name] = refused{word(uint64(op)), fmt.Sprintf("%s (%d) %s", name, uint64(op), only), op}
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
