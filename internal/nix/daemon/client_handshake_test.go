// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// scriptedPeer is a peer that a test plays by hand. Its steps never fail the test
// themselves: what matters is what our end makes of them.
type scriptedPeer struct{ net.Conn }

func (p scriptedPeer) say(s string) { _, _ = io.WriteString(p.Conn, s) }

// hear reads exactly n bytes and not one more.
func (p scriptedPeer) hear(n int) string {
	b := make([]byte, n)
	n, _ = io.ReadFull(p.Conn, b)
	return string(b[:n])
}

// play runs script as the peer of the returned connection, until the test ends.
func play(t *testing.T, script func(scriptedPeer)) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		script(scriptedPeer{theirs})
	}()
	t.Cleanup(func() {
		_ = ours.Close()
		_ = theirs.Close()
		<-done
	})
	return ours
}

// slow is a connection that delivers one byte at a time. It takes them from its
// peer at once, as any real transport does.
type slow struct {
	io.ReadWriteCloser
	buffered io.Reader
}

func newSlow(c io.ReadWriteCloser) io.ReadWriteCloser {
	return slow{c, iotest.OneByteReader(bufio.NewReader(c))}
}

func (s slow) Read(p []byte) (int, error) { return s.buffered.Read(p) }

const clientGreeting = "cxin\x00\x00\x00\x00" + "\x23\x01\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00"

// serverMagic is the word that daemons begin with.
const serverMagic = "oixd\x00\x00\x00\x00"

func TestClientHandshake(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		script func(scriptedPeer)
		want   Peer
	}{
		"server answers each word": {
			script: func(p scriptedPeer) {
				p.hear(8)
				p.say(serverMagic + word(0x123))
				p.hear(24)
				p.say(str("2.15.1") + word(1) + word(stderrLast))
			},
			want: Peer{Version: 0x123, DaemonVersion: "2.15.1", Trust: Trusted},
		},
		"server sends first": {
			script: func(p scriptedPeer) {
				p.say(serverMagic + word(0x126))
				p.hear(32)
				p.say(str("2.34.8") + word(2) + word(stderrLast))
			},
			want: Peer{Version: 0x126, DaemonVersion: "2.34.8", Trust: NotTrusted},
		},
		"server sends everything first": {
			script: func(p scriptedPeer) {
				p.say(serverMagic + word(0x123) + str("2.95.3") + word(0) + word(stderrLast))
				p.hear(32)
			},
			want: Peer{Version: 0x123, DaemonVersion: "2.95.3"},
		},
		"server waits for all of ours": {
			script: func(p scriptedPeer) {
				if p.hear(32) == clientGreeting {
					p.say(serverMagic + word(0x126) + str("2.26.3") + word(1) + word(stderrLast))
				}
			},
			want: Peer{Version: 0x126, DaemonVersion: "2.26.3", Trust: Trusted},
		},
		"Lix from 2.94 refuses below 1.35": {
			script: func(p scriptedPeer) {
				p.hear(8)
				p.say(serverMagic + word(0x123))
				if p.hear(8) != word(0x123) {
					_ = p.Close()
				}
				p.hear(16)
				p.say(str("2.95.3") + word(1) + word(stderrLast))
			},
			want: Peer{Version: 0x123, DaemonVersion: "2.95.3", Trust: Trusted},
		},
		"1.34 has no trust word": {
			script: func(p scriptedPeer) {
				p.hear(8)
				p.say(serverMagic + word(0x122))
				p.hear(24)
				p.say(str("2.8.0") + word(stderrLast))
			},
			want: Peer{Version: 0x122, DaemonVersion: "2.8.0"},
		},
		"future minor version": {
			script: func(p scriptedPeer) {
				p.say(serverMagic + word(0x1ff) + str("9") + word(1) + word(stderrLast))
				p.hear(32)
			},
			want: Peer{Version: 0x1ff, DaemonVersion: "9", Trust: Trusted},
		},
	}
	for name, tc := range tests {
		for how, wrap := range map[string]func(io.ReadWriteCloser) io.ReadWriteCloser{
			"at once":      func(c io.ReadWriteCloser) io.ReadWriteCloser { return c },
			"byte by byte": newSlow,
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				c, err := NewClient(t.Context(), wrap(play(t, tc.script)), ClientOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, c.Peer()); diff != "" {
					t.Errorf("peer (-want +got):\n%s", diff)
				}
				if err := c.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		}
	}
}

func TestClientHandshakeMessages(t *testing.T) {
	t.Parallel()
	conn := play(t, func(p scriptedPeer) {
		p.hear(32)
		p.say(serverMagic + word(0x123) + str("2.15.1") + word(1) + word(stderrNext) + str("warning: x\n") + word(stderrLast))
	})
	var got []Message
	_, err := NewClient(t.Context(), conn, ClientOptions{Log: func(m Message) error {
		got = append(got, m)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Message{Next{Text: "warning: x\n"}}, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// says is a peer that hears us out, says s and closes.
func says(s string) func(scriptedPeer) {
	return func(p scriptedPeer) {
		p.hear(32)
		p.say(s)
		_ = p.Close()
	}
}

// refusal is a peer with whom no handshake comes about.
type refusal struct {
	script func(scriptedPeer)
	want   error
	text   string
}

func TestClientHandshakeRefusals(t *testing.T) {
	t.Parallel()
	testRefusals(t, map[string]refusal{
		"1.33": {
			script: says(serverMagic + word(0x121) + str("2.7.0") + word(stderrLast)),
			want:   &VersionError{Peer: "daemon", Version: 0x121},
			text:   "the daemon speaks version 1.33 of the worker protocol, which is too old: 1.34 (Nix 2.8) or later is needed",
		},
		"1.21": {
			script: says(serverMagic + word(0x115) + word(stderrLast)),
			want:   &VersionError{Peer: "daemon", Version: 0x115},
			text:   "version 1.21",
		},
		"2.0": {
			script: says(serverMagic + word(0x200)),
			want:   &VersionError{Peer: "daemon", Version: 0x200},
			text:   "version 2.0 of the worker protocol, which is unknown here",
		},
		"error in place of the end": {
			script: says(serverMagic + word(0x123) + str("2.15.1") + word(1) +
				word(stderrError) + str("Error") + word(0) + str("Error") + str("not today") + words(0, 0)),
			want: &RemoteError{Message: "not today"},
			text: "handshake with the daemon: not today",
		},
		"end after the version": {
			script: says(serverMagic + word(0x126)),
			want:   io.ErrUnexpectedEOF,
			text:   "reading Nix version at byte 16: unexpected EOF",
		},
		"trust of 3": {
			script: says(serverMagic + word(0x123) + str("2.15.1") + word(3)),
			text:   "reading trust at byte 32: value 3 exceeds the limit of 2",
		},
		"version string too long": {
			script: says(serverMagic + word(0x123) + word(1<<62)),
			text:   "reading Nix version at byte 16: length",
		},
	})
}

func TestClientHandshakeWithOthers(t *testing.T) {
	t.Parallel()
	testRefusals(t, map[string]refusal{
		"access denied": {
			script: says("\xf0\x9f\x9a\xab\x00\x00\x00\x00"),
			want:   &AccessDeniedError{},
			text:   "denies access",
		},
		"login banner": {
			script: says("Welcome to builder\n" + serverMagic + word(0x123)),
			want:   &PreambleError{Text: "Welcome to builder"},
			text:   `the peer does not speak the worker protocol: it sent "Welcome to builder`,
		},
		"blank lines first": {
			script: says("\r\n\nWelcome\n" + strings.Repeat("x", 100)),
			want:   &PreambleError{Text: "Welcome"},
			text:   "does not speak",
		},
		"long line": {
			script: says(strings.Repeat("0123456789", 20)),
			want:   &PreambleError{Text: strings.Repeat("0123456789", 6) + "0123"},
			text:   "does not speak",
		},
		"short line": {
			script: says("no\n"),
			want:   &PreambleError{Text: "no"},
			text:   `"no"`,
		},
		"unprintable": {
			script: says("\x1b[31mr\xc3\xa9d\x00\xff\u0085\u202e\n"),
			want:   &PreambleError{Text: ".[31mréd...."},
			text:   "does not speak",
		},
		"HTTP": {
			script: says("HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"),
			want:   &PreambleError{Text: "HTTP/1.1 400 Bad Request"},
			text:   "HTTP/1.1 400",
		},
		"nothing": {
			script: says(""),
			want:   io.ErrUnexpectedEOF,
			text:   "closed the connection without a word",
		},
		"end before our part was read": {
			script: func(p scriptedPeer) { _ = p.Close() },
			want:   io.ErrUnexpectedEOF,
			text:   "without a word",
		},
	})
}

func testRefusals(t *testing.T, tests map[string]refusal) {
	t.Helper()
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := play(t, tc.script)
			c, err := NewClient(t.Context(), conn, ClientOptions{})
			if c != nil || err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("NewClient = %v, %v, want an error with %q", c, err, tc.text)
			}
			if tc.want != nil && !matches(err, tc.want) {
				t.Errorf("error = %#v, want one like %#v", err, tc.want)
			}
			if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the connection is still open: %v", err)
			}
		})
	}
}

// matches tells whether err wraps an error equal to want.
func matches(err, want error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if cmp.Equal(err, want, cmp.Comparer(func(a, b error) bool { return a == b })) || equalStruct(err, want) {
			return true
		}
	}
	return false
}

func equalStruct(got, want error) bool {
	switch w := want.(type) {
	case *VersionError:
		g, ok := got.(*VersionError)
		return ok && *g == *w
	case *AccessDeniedError:
		_, ok := got.(*AccessDeniedError)
		return ok
	case *PreambleError:
		g, ok := got.(*PreambleError)
		return ok && *g == *w
	case *RemoteError:
		g, ok := got.(*RemoteError)
		return ok && cmp.Equal(g, w)
	}
	return false
}

// A peer that sends the start of a text and then nothing does not keep us for
// long, and one that sends nothing keeps us until the context ends.
func TestClientHandshakeDeadlines(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		say   string
		after time.Duration
		want  string
	}{
		"silence":              {after: time.Minute, want: "probe step timed out"},
		"some text":            {say: "Last login: ", after: time.Second, want: `it sent "Last login:"`},
		"less than a word":     {say: "> ", after: time.Minute, want: `it sent ">"; then: probe step timed out`},
		"magic, then nothing":  {say: serverMagic, after: time.Minute, want: "probe step timed out"},
		"no end of the stream": {say: serverMagic + word(0x123) + str("2") + word(1), after: time.Minute, want: "probe step timed out"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				conn := play(t, func(p scriptedPeer) {
					p.hear(32)
					p.say(tc.say)
				})
				timedOut := errors.New("probe step timed out")
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, timedOut)
				defer cancel()
				start := time.Now()
				_, err := NewClient(ctx, conn, ClientOptions{})
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error = %v, want one with %q", err, tc.want)
				}
				if got := time.Since(start); got != tc.after {
					t.Errorf("took %v, want %v", got, tc.after)
				}
			})
		})
	}
}
