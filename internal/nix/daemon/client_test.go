// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fileNAR is the archive of a regular file.
func fileNAR(contents string) string {
	return str("nix-archive-1") + str("(") + str("type") + str("regular") + str("contents") + str(contents) + str(")")
}

// connect returns a Client whose handshake is done and whose peer goes on with
// script.
func connect(t *testing.T, opts ClientOptions, script func(scriptedPeer)) (*Client, net.Conn) {
	t.Helper()
	conn := play(t, func(p scriptedPeer) {
		p.hear(32)
		p.say(serverMagic + word(0x123) + str("2.15.1") + word(1) + word(stderrLast))
		script(p)
	})
	c, err := NewClient(t.Context(), conn, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c, conn
}

// exchange is a script that expects one request and answers it.
func exchange(t *testing.T, request, answer string) func(scriptedPeer) {
	return func(p scriptedPeer) {
		if diff := cmp.Diff(request, p.hear(len(request))); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		p.say(answer)
	}
}

// found is a result of QueryPathInfo, fetched one of NARFromPath.
type found struct {
	Info  *PathInfo
	Valid bool
}

type fetched struct {
	Size  int64
	Bytes string
}

func TestClientOperations(t *testing.T) {
	t.Parallel()
	drv, drvBytes := sampleDerivation()
	info := &PathInfo{Path: pathA, NARHash: hashA, NARSize: 3}
	tests := map[string]struct {
		call            func(context.Context, *Client, MessageSink) (any, error)
		request, answer string
		want            any
	}{
		"QueryValidPaths": {
			call: func(ctx context.Context, c *Client, sink MessageSink) (any, error) {
				return c.QueryValidPaths(ctx, []string{pathA, pathB}, true, sink)
			},
			request: word(31) + strs(pathA, pathB) + word(1),
			answer:  strs(pathB),
			want:    []string{pathB},
		},
		"QuerySubstitutablePaths": {
			call: func(ctx context.Context, c *Client, sink MessageSink) (any, error) {
				return c.QuerySubstitutablePaths(ctx, []string{pathA}, sink)
			},
			request: word(32) + strs(pathA),
			answer:  strs(),
			want:    []string(nil),
		},
		"QueryPathInfo": {
			call: func(ctx context.Context, c *Client, sink MessageSink) (any, error) {
				info, ok, err := c.QueryPathInfo(ctx, pathA, sink)
				return found{info, ok}, err
			},
			request: word(26) + str(pathA),
			answer:  word(1) + str("") + str(hashA) + strs() + words(0, 3, 0) + strs() + str(""),
			want:    found{info, true},
		},
		"QueryPathInfo of an invalid path": {
			call: func(ctx context.Context, c *Client, sink MessageSink) (any, error) {
				info, ok, err := c.QueryPathInfo(ctx, pathA, sink)
				return found{info, ok}, err
			},
			request: word(26) + str(pathA),
			answer:  word(0),
			want:    found{},
		},
		"NARFromPath": {
			call: func(ctx context.Context, c *Client, sink MessageSink) (any, error) {
				var b bytes.Buffer
				n, err := c.NARFromPath(ctx, pathA, &b, sink)
				return fetched{n, b.String()}, err
			},
			request: word(38) + str(pathA),
			answer:  fileNAR("hello"),
			want:    fetched{int64(len(fileNAR("hello"))), fileNAR("hello")},
		},
		"BuildDerivation": {
			call: func(ctx context.Context, c *Client, sink MessageSink) (any, error) {
				return c.BuildDerivation(ctx, pathDrv, drv, BuildNormal, sink)
			},
			request: word(36) + str(pathDrv) + drvBytes + word(0),
			answer:  words(8) + str("too slow") + words(0, 0, 0, 0, 0),
			want:    &BuildResult{Status: StatusTimedOut, ErrorMessage: "too slow"},
		},
		"BuildPaths as a test of trust": {
			call: func(ctx context.Context, c *Client, sink MessageSink) (any, error) {
				return nil, c.BuildPaths(ctx, nil, BuildRepair, sink)
			},
			request: words(9, 0, 1),
			answer:  word(1),
		},
		"AddMultipleToStore of nothing": {
			call: func(ctx context.Context, c *Client, sink MessageSink) (any, error) {
				return nil, c.AddMultipleToStore(ctx, PathSource{}, sink)
			},
			request: words(44, 0, 1) + words(8, 0, 0),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			line := word(stderrNext) + str("line\n")
			c, _ := connect(t, ClientOptions{}, func(p scriptedPeer) {
				exchange(t, tc.request, line+line+word(stderrLast)+tc.answer)(p)
				// The connection is in step: the next request works.
				exchange(t, word(31)+strs()+word(0), word(stderrLast)+strs(pathA))(p)
			})
			lines := 0
			got, err := tc.call(t.Context(), c, func(Message) error { lines++; return nil })
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if lines != 2 {
				t.Errorf("%d messages, want 2", lines)
			}
			if paths, err := c.QueryValidPaths(t.Context(), nil, false, nil); err != nil || len(paths) != 1 {
				t.Errorf("the next request: %v, %v", paths, err)
			}
		})
	}
}

// calls are all methods that a daemon can fail.
func calls() map[string]func(context.Context, *Client) error {
	return map[string]func(context.Context, *Client) error{
		"QueryValidPaths": func(ctx context.Context, c *Client) error {
			_, err := c.QueryValidPaths(ctx, []string{pathA}, false, nil)
			return err
		},
		"QuerySubstitutablePaths": func(ctx context.Context, c *Client) error {
			_, err := c.QuerySubstitutablePaths(ctx, []string{pathA}, nil)
			return err
		},
		"QueryPathInfo": func(ctx context.Context, c *Client) error {
			_, _, err := c.QueryPathInfo(ctx, pathA, nil)
			return err
		},
		"NARFromPath": func(ctx context.Context, c *Client) error {
			_, err := c.NARFromPath(ctx, pathA, io.Discard, nil)
			return err
		},
		"BuildDerivation": func(ctx context.Context, c *Client) error {
			_, err := c.BuildDerivation(ctx, pathDrv, &BasicDerivation{}, BuildNormal, nil)
			return err
		},
		"BuildPaths": func(ctx context.Context, c *Client) error {
			return c.BuildPaths(ctx, nil, BuildRepair, nil)
		},
		"AddMultipleToStore": func(ctx context.Context, c *Client) error {
			return c.AddMultipleToStore(ctx, files("a", "b"), nil)
		},
	}
}

// files is a source of regular files with the given contents.
func files(contents ...string) PathSource {
	next := 0
	return PathSource{Count: len(contents), Next: func() (PathInfo, io.Reader, error) {
		archive := fileNAR(contents[next])
		path := fmt.Sprintf("/nix/store/%032d-f", next)
		next++
		return PathInfo{Path: path, NARHash: hashA, NARSize: uint64(len(archive))}, strings.NewReader(archive), nil
	}}
}

// hearAll is a script that swallows whatever comes after the first n bytes.
func hearAll(p scriptedPeer) { _, _ = io.Copy(io.Discard, p.Conn) }

// Whatever is going on, the end of the context ends it, says why, and closes.
func TestClientContextEnds(t *testing.T) {
	t.Parallel()
	for name, call := range calls() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c, conn := connect(t, ClientOptions{}, hearAll)
				silence := errors.New("no output for 10 minutes")
				ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Minute, silence)
				defer cancel()
				start := time.Now()
				err := call(ctx, c)
				if !errors.Is(err, silence) || time.Since(start) != 10*time.Minute {
					t.Errorf("after %v: %v", time.Since(start), err)
				}
				if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(name)) {
					t.Errorf("error %q does not name the operation", err)
				}
				if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the connection is still open: %v", err)
				}
				if err := call(t.Context(), c); !errors.Is(err, ErrClosed) || !errors.Is(err, silence) {
					t.Errorf("the next call: %v, want ErrClosed and the reason", err)
				}
				if err := c.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		})
	}
}

// A context that has ended already does not cost the connection.
func TestClientContextEndedBefore(t *testing.T) {
	t.Parallel()
	for name, call := range calls() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := connect(t, ClientOptions{}, exchange(t, word(31)+strs()+word(0), word(stderrLast)+strs()))
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := call(ctx, c); !errors.Is(err, context.Canceled) {
				t.Errorf("error = %v", err)
			}
			if _, err := c.QueryValidPaths(t.Context(), nil, false, nil); err != nil {
				t.Errorf("the next request: %v", err)
			}
		})
	}
}

func TestClientAnswers(t *testing.T) {
	t.Parallel()
	refusal := word(stderrError) + str("Error") + word(0) + str("Error") + str("no such thing") + words(0, 0)
	tests := map[string]struct {
		answer string
		closes bool
		check  func(error) bool
	}{
		"error": {
			answer: refusal,
			check:  func(err error) bool { var e *RemoteError; return errors.As(err, &e) && e.Message == "no such thing" },
		},
		"end of stream": {
			answer: word(stderrNext) + str("x"), closes: true,
			check: func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) },
		},
		"end within a reply": {
			answer: word(stderrLast) + "\x01", closes: true,
			check: func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) },
		},
		"nonsense": {
			answer: word(77),
			check:  func(err error) bool { return strings.Contains(err.Error(), "0x4d is no message") },
		},
	}
	for name, tc := range tests {
		for op, call := range calls() {
			if op == "AddMultipleToStore" && name == "end within a reply" {
				continue // it has no reply
			}
			t.Run(name+"/"+op, func(t *testing.T) {
				t.Parallel()
				c, conn := connect(t, ClientOptions{}, func(p scriptedPeer) {
					done := make(chan struct{})
					go func() { hearAll(p); close(done) }()
					p.say(tc.answer)
					if tc.closes {
						_ = p.Close()
					}
					<-done
				})
				err := call(t.Context(), c)
				if err == nil || !tc.check(err) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(op)) {
					t.Errorf("error = %v", err)
				}
				if name == "error" {
					if c.broken != nil {
						t.Errorf("the connection is closed after an answer: %v", c.broken)
					}
					return
				}
				if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the connection is still open: %v", err)
				}
			})
		}
	}
}

// A daemon that refuses a request says so and closes, perhaps before we are done
// sending it: its words are worth more than a broken pipe.
func TestClientReadsTheReasonOfAFailedWrite(t *testing.T) {
	t.Parallel()
	refusal := word(stderrError) + str("Error") + word(0) + str("Error") + str("invalid operation 31") + words(0, 0)
	tests := map[string]struct {
		said string
		want string
	}{
		"reason": {said: refusal, want: "invalid operation 31"},
		"none":   {want: "send the request: broken pipe"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := connect(t, ClientOptions{}, func(scriptedPeer) {})
			c.out = newBrokenWriter()
			c.in = newDecoder(strings.NewReader(tc.said), Limits{}, "")
			_, err := c.QueryValidPaths(t.Context(), []string{pathA}, false, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
			if _, err := c.QueryValidPaths(t.Context(), nil, false, nil); !errors.Is(err, ErrClosed) {
				t.Errorf("the next request: %v", err)
			}
		})
	}
}

func TestClientLimits(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		limits Limits
		answer string
		call   string
		want   string
	}{
		"paths":          {limits: Limits{Paths: 1}, answer: strs(pathA, pathB), call: "QueryValidPaths", want: "count 2 exceeds the limit of 1"},
		"foreign path":   {answer: strs("/etc/passwd"), call: "QueryValidPaths", want: "is not in the store"},
		"message":        {limits: Limits{Message: 1000}, answer: words(9) + str(strings.Repeat("e", 1001)), call: "BuildDerivation", want: "size limit"},
		"archive":        {limits: Limits{NAR: 200}, answer: fileNAR(strings.Repeat("x", 200)), call: "NARFromPath", want: "larger than 200 bytes"},
		"no archive":     {answer: str("error"), call: "NARFromPath", want: `found "error"`},
		"archive's size": {limits: Limits{NAR: 2}, answer: word(1) + str("") + str(hashA) + strs() + words(0, 3), call: "QueryPathInfo", want: "archive size"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := connect(t, ClientOptions{Limits: tc.limits}, func(p scriptedPeer) {
				done := make(chan struct{})
				go func() { hearAll(p); close(done) }()
				p.say(word(stderrLast) + tc.answer)
				<-done
			})
			err := calls()[tc.call](t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestClientDestinationFails(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left on device")
	c, conn := connect(t, ClientOptions{}, func(p scriptedPeer) {
		p.hear(len(word(38) + str(pathA)))
		p.say(word(stderrLast) + fileNAR("x"))
	})
	r, w := io.Pipe()
	_ = r.CloseWithError(full)
	if _, err := c.NARFromPath(t.Context(), pathA, w, nil); !errors.Is(err, full) {
		t.Errorf("error = %v", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the connection is still open: %v", err)
	}
}
