// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// remoteError is an answer that is an error of that text.
func remoteError(text string) string {
	return word(stderrError) + str("Error") + word(0) + str("Error") + str(text) + words(0, 0)
}

// holdRequest is what HoldPaths sends.
func holdRequest(paths ...string) string {
	var b strings.Builder
	for _, path := range paths {
		b.WriteString(word(11) + str(path))
	}
	return b.String() + word(31) + strs(paths...) + word(0)
}

func TestHoldPaths(t *testing.T) {
	t.Parallel()
	held := word(stderrLast) + word(1)
	tests := map[string]struct {
		answer     string
		want       []string
		wantRemote string
		wantErr    error
		wantClosed bool
	}{
		"one of two": {
			answer: held + word(stderrNext) + str("text\n") + held + word(stderrLast) + strs(pathB),
			want:   []string{pathB},
		},
		"refused, and then answered": {
			answer:     remoteError("no room") + held + word(stderrLast) + strs(pathA),
			want:       []string{pathA},
			wantRemote: "no room",
		},
		"refused, and then closed": {
			answer: remoteError("no room"), wantRemote: "no room", wantClosed: true,
		},
		"closed": {
			answer: held, wantErr: io.ErrUnexpectedEOF, wantClosed: true,
		},
		"nonsense": {
			answer: held + held + word(stderrLast) + strs("/etc/passwd"), wantErr: errAny, wantClosed: true,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := connect(t, ClientOptions{}, func(p scriptedPeer) {
				exchange(t, holdRequest(pathA, pathB), tc.answer)(p)
				_ = p.Close()
			})
			got, err := c.HoldPaths(t.Context(), []string{pathA, pathB}, nil)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("valid (-want +got):\n%s", diff)
			}
			var remote *RemoteError
			if errors.As(err, &remote) != (tc.wantRemote != "") || remote != nil && remote.Message != tc.wantRemote {
				t.Errorf("error = %v, want the daemon's %q", err, tc.wantRemote)
			}
			if (err != nil) != (tc.wantRemote != "" || tc.wantErr != nil) {
				t.Errorf("error = %v", err)
			}
			if tc.wantErr != nil && tc.wantErr != errAny && !errors.Is(err, tc.wantErr) {
				t.Errorf("error = %v, want %v", err, tc.wantErr)
			}
			if closed := c.broken != nil; closed != tc.wantClosed {
				t.Errorf("closed: %t, want %t", closed, tc.wantClosed)
			}
		})
	}
}

// errAny stands for an error of any kind.
var errAny = errors.New("any")

func TestQueryPathInfos(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, ClientOptions{}, exchange(t, word(26)+str(pathA)+word(26)+str(pathB),
		word(stderrLast)+word(0)+word(stderrLast)+word(1)+str("")+str(hashA)+strs()+words(0, 3, 0)+strs()+str("")))
	got, err := c.QueryPathInfos(t.Context(), []string{pathA, pathB}, nil)
	want := []*PathInfo{nil, {Path: pathB, NARHash: hashA, NARSize: 3}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v, infos (-want +got):\n%s", err, diff)
	}
}

// A flight that answers more than all its answers may have is cut off.
func TestFlightLimits(t *testing.T) {
	t.Parallel()
	info := word(stderrLast) + word(1) + str("") + str(hashA) + strs() + words(0, 3, 0) + strs(strings.Repeat("s", 1000)) + str("")
	c, _ := connect(t, ClientOptions{Limits: Limits{Message: 2000, Paths: 2}}, func(p scriptedPeer) {
		p.hear(len(word(26)+str(pathA)) * 2)
		p.say(info + info)
	})
	if _, err := c.QueryPathInfos(t.Context(), []string{pathA, pathB, pathB}, nil); err == nil || !strings.Contains(err.Error(), "only 2 are allowed") {
		t.Errorf("error = %v, want one of the number of paths", err)
	}
	if _, err := c.QueryPathInfos(t.Context(), []string{pathA, pathB}, nil); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("error = %v, want one of the size of the answers", err)
	}
}

func TestFlightOfNothing(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, ClientOptions{}, func(scriptedPeer) {})
	if got, err := c.HoldPaths(t.Context(), nil, nil); got != nil || err != nil {
		t.Errorf("HoldPaths = %v, %v", got, err)
	}
	if got, err := c.QueryPathInfos(t.Context(), nil, nil); got != nil || err != nil {
		t.Errorf("QueryPathInfos = %v, %v", got, err)
	}
}

// A daemon whose answers are not read takes no requests: it reads one, and
// answers before it reads the next.
func TestFlightDoesNotDeadlock(t *testing.T) {
	t.Parallel()
	var paths []string
	for i := range 1000 {
		paths = append(paths, fmt.Sprintf("/nix/store/%032d-x", i))
	}
	c, _ := connect(t, ClientOptions{}, func(p scriptedPeer) {
		for _, path := range paths {
			p.hear(len(word(11) + str(path)))
			p.say(word(stderrLast) + word(1))
		}
		p.hear(len(word(31) + strs(paths...) + word(0)))
		p.say(word(stderrLast) + strs(paths...))
	})
	got, err := c.HoldPaths(t.Context(), paths, nil)
	if diff := cmp.Diff(paths, got); diff != "" || err != nil {
		t.Errorf("error %v, valid (-want +got):\n%s", err, diff)
	}
}

// A daemon that reads no further ends a flight with its context, also while
// requests are being sent.
func TestFlightEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, conn := connect(t, ClientOptions{}, func(p scriptedPeer) { p.hear(8) })
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.HoldPaths(ctx, []string{pathA, pathB}, nil); err == nil || c.broken == nil {
			t.Errorf("error = %v, want the connection to be closed", err)
		}
	})
}

// FuzzFlights plays any daemon against operations that send many requests at once.
func FuzzFlights(f *testing.F) {
	hello := serverMagic + word(0x123) + str("2.34.8") + word(1) + word(stderrLast)
	held := word(stderrLast) + word(1)
	info := word(stderrLast) + word(1) + str("") + str(hashA) + strs() + words(0, 3, 0) + strs() + str("")
	for _, s := range []string{
		held + held + word(stderrLast) + strs(pathA) + info + info,
		remoteError("no") + held + word(stderrLast) + strs(pathA, pathB) + word(stderrLast) + word(0) + info,
		held + word(stderrLast) + word(1<<63),
	} {
		f.Add([]byte(hello + s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := NewClient(t.Context(), &oneSided{r: bytes.NewReader(data)}, ClientOptions{Limits: fuzzLimits()})
		if err != nil {
			return
		}
		paths := []string{pathA, pathB}
		if valid, err := c.HoldPaths(t.Context(), paths, nil); err != nil && c.broken != nil && valid != nil {
			t.Errorf("answer %v beside %v", valid, err)
		}
		if infos, err := c.QueryPathInfos(t.Context(), paths, nil); err == nil && len(infos) != len(paths) {
			t.Errorf("%d answers to %d questions", len(infos), len(paths))
		}
	})
}
