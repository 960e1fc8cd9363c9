// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// wantHello is what our server says to clients of 1.35 and later.
const wantHello = serverMagic + "\x23\x01\x00\x00\x00\x00\x00\x00"

func TestServerHandshake(t *testing.T) {
	t.Parallel()
	welcome := str("2.34.8") + word(1) + word(stderrLast)
	tests := map[string]struct {
		script      func(*testing.T, scriptedPeer)
		wantVersion Version
		wantSpoken  Version
	}{
		"Nix up to 2.23 and Lix wait for our version": {
			script: func(t *testing.T, p scriptedPeer) {
				p.say("cxin\x00\x00\x00\x00")
				expect(t, p, wantHello)
				p.say(word(0x123))
				p.say(words(0, 0))
				expect(t, p, welcome)
			},
			wantVersion: 0x123, wantSpoken: 0x123,
		},
		"Nix from 2.24 sends its version at once": {
			script: func(t *testing.T, p scriptedPeer) {
				p.say("cxin\x00\x00\x00\x00" + word(0x126))
				expect(t, p, wantHello)
				p.say(words(0, 0))
				expect(t, p, welcome)
			},
			wantVersion: 0x126, wantSpoken: 0x123,
		},
		"Nix from 2.24 with 1.39": {
			script: func(t *testing.T, p scriptedPeer) {
				p.say("cxin\x00\x00\x00\x00" + word(0x127))
				expect(t, p, wantHello)
				p.say(words(0, 0))
				expect(t, p, welcome)
			},
			wantVersion: 0x127, wantSpoken: 0x123,
		},
		"1.34 gets no trust word": {
			script: func(t *testing.T, p scriptedPeer) {
				p.say("cxin\x00\x00\x00\x00")
				expect(t, p, wantHello)
				p.say(words(0x122, 0, 0))
				expect(t, p, str("2.34.8")+word(stderrLast))
			},
			wantVersion: 0x122, wantSpoken: 0x122,
		},
		"CPU affinity": {
			script: func(t *testing.T, p scriptedPeer) {
				p.say("cxin\x00\x00\x00\x00" + word(0x123))
				expect(t, p, wantHello)
				p.say(words(1, 0xff, 0))
				expect(t, p, welcome)
			},
			wantVersion: 0x123, wantSpoken: 0x123,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := play(t, func(p scriptedPeer) { tc.script(t, p) })
			s, err := Accept(t.Context(), newSlow(conn), ServerOptions{DaemonVersion: "2.34.8", Trust: Trusted})
			if err != nil {
				t.Fatal(err)
			}
			if s.ClientVersion() != tc.wantVersion || s.in.version != tc.wantSpoken {
				t.Errorf("client %s, spoken %s", s.ClientVersion(), s.in.version)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// expect reads what must come next.
func expect(t *testing.T, p scriptedPeer, want string) {
	t.Helper()
	if diff := cmp.Diff(want, p.hear(len(want))); diff != "" {
		t.Errorf("server sent (-want +got):\n%s", diff)
	}
}

// Clients that are too old get an error that they can read, with our whole
// sentence in it.
func TestServerHandshakeRefusals(t *testing.T) {
	t.Parallel()
	text := func(v string) string {
		return "the client speaks version " + v + " of the worker protocol, which is too old: 1.34 (Nix 2.8) or later is needed"
	}
	tests := map[string]struct {
		version uint64
		words   string
		want    string
		text    string
	}{
		"1.33": {0x121, words(0, 0), str("2.34.8") + word(stderrError) + str("Error") + word(0) + str("Error") + str(text("1.33")) + words(0, 0), text("1.33")},
		"1.32": {0x120, words(0, 0), word(stderrError) + str("Error") + word(0) + str("Error") + str(text("1.32")) + words(0, 0), text("1.32")},
		"1.21": {0x115, words(0, 0), word(stderrError) + str(text("1.21")) + word(1), text("1.21")},
		"1.12": {0x10c, words(0), word(stderrError) + str(text("1.12")) + word(1), text("1.12")},
		"1.10": {0x10a, "", word(stderrError) + str(text("1.10")) + word(1), text("1.10")},
		"2.0":  {0x200, "", "", "version 2.0 of the worker protocol, which is unknown here"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := play(t, func(p scriptedPeer) {
				p.say("cxin\x00\x00\x00\x00")
				expect(t, p, wantHello)
				p.say(word(tc.version) + tc.words)
				expect(t, p, tc.want)
			})
			s, err := Accept(t.Context(), conn, ServerOptions{DaemonVersion: "2.34.8"})
			var ve *VersionError
			if s != nil || !errors.As(err, &ve) || ve.Version != Version(tc.version) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("Accept = %v, %v", s, err)
			}
			if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the connection is still open: %v", err)
			}
		})
	}
}

func TestServerHandshakeBrokenClients(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		say  string
		want string
	}{
		"nothing":             {"", "unexpected EOF"},
		"HTTP":                {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "is not how a Nix client begins"},
		"end after the magic": {"cxin\x00\x00\x00\x00", "EOF"},
		"end after 1.35":      {"cxin\x00\x00\x00\x00" + word(0x123), "EOF"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := play(t, func(p scriptedPeer) {
				p.say(tc.say)
				if tc.say != "" && tc.say[0] == 'c' {
					expect(t, p, wantHello)
				}
				_ = p.Close()
			})
			if s, err := Accept(t.Context(), conn, ServerOptions{}); s != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Accept = %v, %v, want an error with %q", s, err, tc.want)
			}
		})
	}
}

func TestServerHandshakeDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn := play(t, hearAll)
		slow := errors.New("client too slow")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, slow)
		defer cancel()
		if s, err := Accept(ctx, conn, ServerOptions{}); s != nil || !errors.Is(err, slow) {
			t.Errorf("Accept = %v, %v", s, err)
		}
	})
}
